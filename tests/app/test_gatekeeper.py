"""Gates that nobody lifted are lifted by anyone."""

from __future__ import annotations

from dataclasses import replace

from tests.support.build import make_pod
from tokenservice.app.gatekeeper import EXPIRY_SECONDS, Gatekeeper
from tokenservice.core.model import ObjectKey, Pod
from tokenservice.errors import ApiError, NotFound, Retryable

NOW = 1000.0


class Lifts:
    """Keeps whom it lifted; fails for those told to."""

    def __init__(self, failing: dict[str, ApiError] | None = None) -> None:
        self.lifted: list[str] = []
        self.failing = failing or {}

    async def place(self, pod: ObjectKey, uid: str, node: str | None) -> tuple[ObjectKey, str]:
        if pod.name in self.failing:
            raise self.failing[pod.name]
        assert node is None
        self.lifted.append(pod.name)
        return pod, "1"


def pod(name: str, *, age: float = EXPIRY_SECONDS, gated: bool = True, deleting: bool = False) -> Pod:
    return replace(make_pod(name), created_at=NOW - age, gated=gated, deleting=deleting)


def make_gatekeeper(lifts: Lifts, *pods: Pod) -> Gatekeeper:
    return Gatekeeper(pods=lambda: pods, lifts=lifts, wall_clock=lambda: NOW)


async def test_only_old_gates_of_ours_are_lifted() -> None:
    lifts = Lifts()
    pods = [pod("old"), pod("young", age=29), pod("open", gated=False), pod("going", deleting=True)]
    await make_gatekeeper(lifts, *pods).lift(older_than=EXPIRY_SECONDS)
    assert lifts.lifted == ["old"]


async def test_on_the_way_out_all_are_lifted() -> None:
    lifts = Lifts()
    await make_gatekeeper(lifts, pod("old"), pod("young", age=0)).lift()
    assert lifts.lifted == ["old", "young"]


async def test_one_that_cannot_be_lifted_does_not_stop_the_others() -> None:
    lifts = Lifts({"a": NotFound("gone"), "b": Retryable("busy")})
    await make_gatekeeper(lifts, pod("a"), pod("b"), pod("c")).lift()
    assert lifts.lifted == ["c"]
