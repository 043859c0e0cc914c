"""Whether optimizations reach the engine and do something, by what it counts and answers."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from e2e.real.service import ADAPTER, NAME, SEQUENCES

Json = dict[str, Any]
_HITS, _ACCEPTED = "vllm:prefix_cache_hits_total", "vllm:spec_decode_num_accepted_tokens_total"
_RUNNING = "vllm:num_requests_running"
_PREFIX = "Once upon a time there was a cache that remembered. " * 8


def seen(url: str) -> Json:
    """Of n-gram speculation, prefix caching and a limit of sequences: counts and facts.

    What is zero or false was not seen. Nobody else may ask meanwhile.
    """
    before = _counters(url)
    answers = [_answer(url, NAME) for _ in range(3)]
    after = _counters(url)
    return {
        "prefixCacheHitTokens": after[_HITS] - before[_HITS],
        "acceptedNGramTokens": _accepted(before, after),
        "answersStayTheSame": len(set(answers)) == 1,
        "maxNumSeqsHolds": _most_at_once(url) == SEQUENCES,
    }


def seen_later(url: str) -> Json:
    """Of a draft model and an adapter, likewise."""
    before = _counters(url)
    plain = _answer(url, NAME)
    after = _counters(url)
    return {
        "acceptedDraftModelTokens": _accepted(before, after),
        "adapterAnswersDifferently": _answer(url, ADAPTER) != plain,
    }


def _accepted(before: dict[str, float], after: dict[str, float]) -> float:
    """Drafted tokens that the model agreed to; without speculation an engine does not count them."""
    return after.get(_ACCEPTED, 0.0) - before.get(_ACCEPTED, 0.0)


def refuses_adapters(url: str) -> bool:
    """Whether a stranger is refused who asks the engine to load and to forget an adapter, by either pair of paths."""
    asked = {"lora_name": ADAPTER, "lora_path": "/models/adapter", "name": ADAPTER, "src": "/models/adapter"}
    wanted = (
        ("POST", "/v1/load_lora_adapter"),
        ("POST", "/v1/unload_lora_adapter"),
        ("POST", "/adapters"),
        ("DELETE", f"/adapters/{ADAPTER}"),
    )
    return all(_status(url + path, method, asked) == 403 for method, path in wanted)


def _status(url: str, method: str, body: Json) -> int:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _most_at_once(url: str) -> float:
    """Sequences that ran at once while as many again were asked for."""
    with ThreadPoolExecutor(2 * SEQUENCES) as asking:
        answers = [asking.submit(_answer, url, NAME, tokens=1000) for _ in range(2 * SEQUENCES)]
        most = 0.0
        while not all(answer.done() for answer in answers):
            most = max(most, _counters(url)[_RUNNING])
    return most


def _answer(url: str, model: str, *, tokens: int = 128) -> str:
    body = {"model": model, "prompt": _PREFIX, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return str(json.load(answer)["choices"][0]["text"])


def _counters(url: str) -> dict[str, float]:
    """Every sample without its labels; of a name with several, their sum."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        sample = re.fullmatch(r"([a-z_:]+)(?:\{.*\})? (\S+)", line)
        if sample:
            found[sample[1]] = found.get(sample[1], 0.0) + float(sample[2])
    return found
