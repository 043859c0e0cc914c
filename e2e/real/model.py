"""A Llama of two layers with random weights and a tokenizer of bytes: small to load, and what it writes is nonsense.

Run inside the engine's image, whose `transformers` makes it: `python model.py FOLDER ADAPTER DRAFT`; the second folder
gets a LoRA adapter, random too, the third a draft model. The same seed makes the same weights, so that every replica
answers alike.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LAYERS, WIDTH, HEADS, CONTEXT, RANK = 2, 64, 2, 4096, 8


def main(folder: Path, adapter: Path, draft: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(folder)
    fast.save_pretrained(draft)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    _write_adapter(adapter)
    _shorten(model).save_pretrained(draft)


def _shorten(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Without its last layer: what a draft model is to its target, a cheaper one that often says the same."""
    model.model.layers = model.model.layers[: LAYERS - 1]
    model.config.num_hidden_layers = LAYERS - 1
    return model


def _write_adapter(folder: Path) -> None:
    """Of the projections of queries and values, in the layout of PEFT."""
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16 * RANK, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = {}
    for layer in range(LAYERS):
        for target in config["target_modules"]:
            name = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            weights[f"{name}.lora_A.weight"] = torch.randn(RANK, WIDTH, dtype=torch.bfloat16)
            weights[f"{name}.lora_B.weight"] = torch.randn(WIDTH, RANK, dtype=torch.bfloat16)
    save_file(weights, folder / "adapter_model.safetensors")


main(*map(Path, sys.argv[1:]))
