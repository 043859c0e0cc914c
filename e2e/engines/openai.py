"""The OpenAI-compatible bodies: what a request asks for, and the JSON of its answer.

Extensions for cheap and exact load tests: the headers `x-prompt-tokens` (length of a prompt that is not sent) and
`x-cached-tokens` (how much of it is in the prefix cache), `tokens` in every streamed chunk, and `engine_times` beside
`usage`: milliseconds from arrival at the engine to admission, first and last token, exact whatever the network does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from e2e.engines.metrics import Timing

PROMPT_TOKENS_HEADER = "x-prompt-tokens"
CACHED_TOKENS_HEADER = "x-cached-tokens"
CHARACTERS_PER_TOKEN = 4
DEFAULT_COMPLETION_TOKENS = 16
DONE = b"data: [DONE]\n\n"
WORD = " t"


class BadRequestError(Exception):
    """The body makes no sense."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A completion request. `output_tokens` None means as many as the context takes."""

    is_chat: bool
    model: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int | None
    is_streamed: bool
    includes_usage: bool


def read_ask(body: bytes, headers: Mapping[str, str], *, is_chat: bool) -> Ask:
    """Parse a request; there is no end-of-sequence token, so `max_tokens` is what comes out, `ignore_eos` or not."""
    try:
        asked = json.loads(body)
        given = headers.get(PROMPT_TOKENS_HEADER)
        prompt_tokens = int(given) if given else _prompt_tokens(asked, is_chat)
        limit = asked.get("max_completion_tokens", asked.get("max_tokens"))
        if limit is None and not is_chat:
            limit = DEFAULT_COMPLETION_TOKENS
        ask = Ask(
            is_chat,
            str(asked.get("model", "")),
            max(1, prompt_tokens),
            min(int(headers.get(CACHED_TOKENS_HEADER, 0)), max(0, prompt_tokens - 1)),
            None if limit is None else int(limit),
            bool(asked.get("stream", False)),
            bool((asked.get("stream_options") or {}).get("include_usage", False)),
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise BadRequestError(f"cannot read the request: {error!r}") from error
    if ask.output_tokens is not None and ask.output_tokens < 1:
        raise BadRequestError(f"max_tokens must be at least 1, got {ask.output_tokens}.")
    return ask


def _prompt_tokens(asked: Mapping[str, Any], is_chat: bool) -> int:
    if is_chat:
        return sum(len(str(m.get("content", ""))) for m in asked["messages"]) // CHARACTERS_PER_TOKEN + 1
    prompt = asked["prompt"]
    if isinstance(prompt, str):
        return len(prompt) // CHARACTERS_PER_TOKEN + 1
    if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
        return len(prompt)
    raise BadRequestError("prompt must be a string or a list of token ids")


class Answer:
    """The answer to one request. The constant parts of its chunks are made once."""

    __slots__ = ("_after", "_ask", "_before", "_head")

    def __init__(self, ask: Ask, answer_id: str, created_s: int, model: str) -> None:
        self._ask = ask
        kind = "text_completion" if not ask.is_chat else "chat.completion"
        if ask.is_chat and ask.is_streamed:
            kind = "chat.completion.chunk"
        prefix = "chatcmpl" if ask.is_chat else "cmpl"
        head = {"id": f"{prefix}-{answer_id}", "object": kind, "created": created_s, "model": model}
        self._head = json.dumps(head)[:-1]
        text = '"delta":{"content":"' if ask.is_chat else '"text":"'
        self._before = f'data: {self._head},"choices":[{{"index":0,{text}'
        self._after = '"}' if ask.is_chat else '"'

    def chunk(self, fresh: int) -> bytes:
        """A group of tokens on its way."""
        text = WORD * fresh
        return (
            f'{self._before}{text}{self._after},"logprobs":null,"finish_reason":null}}],"tokens":{fresh}}}\n\n'.encode()
        )

    def last_chunks(self, fresh: int, output_tokens: int, timing: Timing) -> bytes:
        """The last group, the usage when it was asked for, and the end mark."""
        exact = f',"engine_times":{_times(timing)}'
        ends_here = "" if self._ask.includes_usage else exact
        last = (
            f"{self._before}{WORD * fresh}{self._after}"
            f',"logprobs":null,"finish_reason":"length"}}],"tokens":{fresh}{ends_here}}}\n\n'
        )
        if self._ask.includes_usage:
            last += f'data: {self._head},"choices":[],"usage":{self._usage(output_tokens)}{exact}}}\n\n'
        return last.encode() + DONE

    def whole(self, output_tokens: int, timing: Timing) -> bytes:
        """The body of an answer that is not streamed."""
        text = json.dumps(WORD * output_tokens)
        said = f'"message":{{"role":"assistant","content":{text}}}' if self._ask.is_chat else f'"text":{text}'
        return (
            f'{self._head},"choices":[{{"index":0,{said},"logprobs":null,"finish_reason":"length"}}],'
            f'"usage":{self._usage(output_tokens)},"engine_times":{_times(timing)}}}'
        ).encode()

    def _usage(self, output_tokens: int) -> str:
        prompt, cached = self._ask.prompt_tokens, self._ask.cached_tokens
        details = f',"prompt_tokens_details":{{"cached_tokens":{cached}}}' if cached else ""
        total = prompt + output_tokens
        return f'{{"prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{output_tokens}{details}}}'


def _times(timing: Timing) -> str:
    queued, first, last = timing.queued_s * 1000, timing.ttft_s * 1000, timing.e2e_s * 1000
    return f'{{"queued_ms":{queued:.4f},"first_token_ms":{first:.4f},"last_token_ms":{last:.4f}}}'


def error_body(status: int, message: str) -> bytes:
    """An error as vLLM words it."""
    kind = {400: "BadRequestError", 404: "NotFoundError"}.get(status, "ServiceUnavailableError")
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}}).encode()


def models_body(model: str, created_s: int, max_model_len: int, adapters: Mapping[str, str] | None = None) -> bytes:
    """The answer of /v1/models; `adapters` are paths by name."""
    card = {"id": model, "object": "model", "created": created_s, "owned_by": "vllm", "root": model, "parent": None}
    cards: list[dict[str, object]] = [{**card, "max_model_len": max_model_len, "permission": []}]
    cards += [card | {"id": name, "root": path, "parent": model} for name, path in (adapters or {}).items()]
    return json.dumps({"object": "list", "data": cards}).encode()
