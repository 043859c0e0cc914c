"""Keeps everybody but the loader of the pod from having vLLM load and forget adapters, and vLLM from doing it twice.

vLLM imports it by `--middleware adapter_guard.Guard`. Its endpoints for adapters ask for no key, and whoever reaches
the engine could put other weights under a name that others use. The loader writes the token beside this file before
the engine starts; it is in no template, no Secret and no log. Python 3.9 or newer, and nothing beside it.
"""

import hmac
from pathlib import Path

HEADER = b"x-adapter-token"
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_REFUSAL = b'{"error": {"message": "adapters are loaded by the operator: see spec.model.adapters", "code": 403}}'


class Guard:
    """An ASGI middleware. It judges paths that speak of adapters and hands all others on untouched."""

    def __init__(self, app):
        self._app = app
        self._token = (Path(__file__).parent / "token").read_bytes()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or not _changes_adapters(scope):
            await self._app(scope, receive, send)
        elif self._trusts(scope):
            await self._app(scope, receive, _once_settled(scope.get("app"), send))
        else:
            head = {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"application/json")]}
            await send(head)
            await send({"type": "http.response.body", "body": _REFUSAL})

    def _trusts(self, scope):
        given = [value for name, value in scope["headers"] if name.lower() == HEADER]
        return len(given) == 1 and hmac.compare_digest(given[0], self._token)


def _changes_adapters(scope):
    """By the word: vLLM has a second pair of endpoints, /adapters, for a cloud that calls it so."""
    return scope["method"] not in _READS and "adapter" in scope["path"].lower()


def _once_settled(app, send):
    """`send`, behind which no adapter is told to be loaded in place any more.

    vLLM keeps that wish with an adapter that was replaced, and then reads its files anew in each step that uses it
    (vllm#33791, in 0.32 too).
    """

    async def answer(message):
        models = getattr(getattr(app, "state", None), "openai_serving_models", None)
        for request in getattr(models, "lora_requests", {}).values():
            if getattr(request, "load_inplace", False):
                request.load_inplace = False
        await send(message)

    return answer
