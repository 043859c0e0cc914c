"""The catalogue is applied without taking anything from anyone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.edge.fakes import Server
from tokenservice.core.model import Json
from tokenservice.edge.catalogue import apply_catalogue, conflicting_fields, without
from tokenservice.errors import ApiError, Conflict, Forbidden, NotFound

H100: Json = {
    "apiVersion": "taas.dev/v1alpha1",
    "kind": "AcceleratorClass",
    "metadata": {"name": "h100"},
    "spec": {
        "pricePerHour": 3.0,
        "nodeLabels": {"nvidia.com/gpu.product": "H100"},
        "denseTeraflops": {"bf16": 989, "fp8": 1979},
        "sources": [{"figure": "memory"}],
    },
}


class Fence:
    def __init__(self, *, held: bool = True) -> None:
        self._held = held

    def held(self) -> bool:
        return self._held


def conflict(*fields: str) -> Conflict:
    causes = [{"reason": "FieldManagerConflict", "message": "conflict", "field": field} for field in fields]
    return Conflict("conflicts", status=409, details={"causes": causes})


async def test_objects_are_applied_without_force() -> None:
    server = Server()
    assert await apply_catalogue(server, [H100], Fence()) == []
    (_, _, sent), *_ = server.calls
    assert sent["force"] is False
    assert sent["manifest"] == H100


async def test_fields_of_others_are_left_to_them_and_the_rest_is_applied() -> None:
    server = Server()
    server.failures = [conflict(".spec.pricePerHour")]
    assert await apply_catalogue(server, [H100], Fence()) == []
    spec = server.calls[1][2]["manifest"]["spec"]
    assert "pricePerHour" not in spec
    assert spec["denseTeraflops"] == H100["spec"]["denseTeraflops"]


@pytest.mark.parametrize("error", [NotFound("no such kind"), Forbidden("no right"), conflict()])
async def test_what_fails_is_returned_for_another_try_and_does_not_stop_the_others(error: ApiError) -> None:
    server = Server()
    server.failures = [error, error]
    other = {**H100, "metadata": {"name": "l4"}}
    failed = await apply_catalogue(server, [H100, H100, other], Fence())
    assert H100 in failed
    assert other not in failed


async def test_who_does_not_lead_applies_nothing() -> None:
    server = Server()
    assert await apply_catalogue(server, [H100], Fence(held=False)) == [H100]
    assert server.calls == []


DROPPED: dict[str, tuple[str, Any]] = {
    "a field": (".spec.pricePerHour", lambda spec: "pricePerHour" not in spec),
    "a field in a mapping": (".spec.denseTeraflops.fp8", lambda spec: spec["denseTeraflops"] == {"bf16": 989}),
    "a key with dots": (".spec.nodeLabels.nvidia.com/gpu.product", lambda spec: spec["nodeLabels"] == {}),
    "an entry of a list": ('.spec.sources[figure="memory"].source', lambda spec: "sources" not in spec),
    "a field that we do not set": (".spec.idleWatts", lambda spec: spec == H100["spec"]),
    "something below a number": (".spec.pricePerHour.x", lambda spec: spec == H100["spec"]),
}


@pytest.mark.parametrize("name", DROPPED)
def test_conflicting_fields_are_left_out(name: str) -> None:
    path, holds = DROPPED[name]
    assert holds(without(H100, [path])["spec"])


def test_only_conflicts_of_managers_name_fields() -> None:
    other = Conflict("changed", details={"causes": [{"reason": "Other", "field": ".spec"}]})
    assert conflicting_fields(other) == []
    assert conflicting_fields(Conflict("changed")) == []
    assert conflicting_fields(conflict(".a", ".b")) == [".a", ".b"]
