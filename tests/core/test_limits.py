"""What a namespace may take: limits of the TokenFleet hold in any fleet, and say so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.build import (
    FLEET,
    GPU,
    H100,
    H100_8B,
    make_deployment,
    make_metrics,
    make_node,
    make_pod,
    make_service,
)
from tests.support.world import World
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.model import Service


def fleet(*limits: dict[str, Any]) -> TokenFleetSpec:
    return TokenFleetSpec.model_validate(FLEET.model_dump(by_alias=True) | {"namespaces": list(limits)})


def world(*services: Service, limits: tuple[dict[str, Any], ...] = (), rate: float = 0.5, **extra: Any) -> World:
    made = World(
        services=list(services),
        nodes=[make_node(f"n{i}") for i in range(1, 5)],
        extra={"fleet": fleet(*limits)} | extra,
    )
    made.metrics = {service.key: make_metrics(rate, engines_reporting=1000) for service in services}
    return made


def condition(made: World, name: str, kind: str) -> dict[str, Any]:
    (status,) = [service.status for service in made.services if service.key.name == name]
    return next(c for c in status["conditions"] if c["type"] == kind)


def held(made: World, namespace: str) -> int:
    """Accelerators that Deployments of the namespace ask for."""
    return sum(
        child.body["spec"]["replicas"]
        * int(child.body["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"][GPU])
        for child in made.children.values()
        if child.key.kind == "Deployment" and child.key.namespace == namespace
    )


TEAM = {"name": "team", "maxAccelerators": 3}


def service(name: str = "chat", namespace: str = "team", created_at: float = 0.0, **spec: Any) -> Service:
    return make_service(name, namespace=namespace, created_at=created_at, **spec)


def test_growth_stops_at_the_limit_and_status_says_so() -> None:
    made = world(service(scaling={"minReplicas": 5}), limits=(TEAM,))
    made.run(8)
    assert held(made, "team") == 3
    assert made.serving(made.services[0].key) == 3
    told = condition(made, "chat", "CapacityAvailable")
    assert (told["status"], told["reason"]) == ("False", "NamespaceLimit")
    assert "namespace team may hold 3 accelerators, and 3 are given" in told["message"]
    assert condition(made, "chat", "Ready")["reason"] == "NamespaceLimit"
    assert all(plan.actions == () for plan in made.run(5)), "and it stays"


def test_a_namespace_that_may_hold_none_gets_none_and_is_told() -> None:
    made = world(service(), limits=({"name": "team", "maxAccelerators": 0},))
    made.run(3)
    assert held(made, "team") == 0
    assert condition(made, "chat", "Ready")["reason"] == "NamespaceLimit"


def test_other_namespaces_never_notice() -> None:
    made = world(
        service(scaling={"minReplicas": 5}), service(namespace="other", scaling={"minReplicas": 5}), limits=(TEAM,)
    )
    made.run(8)
    assert (held(made, "team"), held(made, "other")) == (3, 5)


def test_within_a_namespace_tiers_go_first_and_then_age() -> None:
    promised = {"tier": "Guaranteed", "objectives": {"volume": {"guaranteedTokensPerSecond": 10}}}
    made = world(
        service("old", created_at=1.0, scaling={"minReplicas": 2}),
        service("young", created_at=2.0, scaling={"minReplicas": 2}),
        service("owed", created_at=3.0, **promised),
        limits=(TEAM,),
    )
    made.run(8)
    assert {one.key.name: made.serving(one.key) for one in made.services} == {"old": 2, "young": 0, "owed": 1}


def test_a_limit_that_is_lowered_takes_nothing_that_runs() -> None:
    made = world(service(scaling={"minReplicas": 3}))
    made.run(8)
    made.extra["fleet"] = fleet({"name": "team", "maxAccelerators": 1})
    made.run(10)
    assert made.serving(made.services[0].key) == 3


def test_what_serves_is_not_removed_for_a_variant_that_the_limit_does_not_let_be() -> None:
    made = world(service(scaling={"minReplicas": 2}), limits=(TEAM,))
    made.run(8)
    shape = {"parameters": 8e9, "layers": 32, "heads": 32, "kvHeads": 8, "headDim": 128}
    model = {"uri": "s3://bucket/m", "architecture": shape}
    larger = service(scaling={"minReplicas": 2}, engine={"tensorParallelSize": 8}, model=model)
    made.services = [replace(made.services[0], spec=larger.spec, generation=2)]
    for _ in range(10):
        made.round()
        assert made.serving(made.services[0].key) == 2
    assert condition(made, "chat", "CapacityAvailable")["reason"] == "NamespaceLimit"


def test_a_limit_that_is_raised_is_used() -> None:
    made = world(service(scaling={"minReplicas": 5}), limits=(TEAM,))
    made.run(8)
    made.extra["fleet"] = fleet({"name": "team", "maxAccelerators": 6})
    made.run(8)
    assert made.serving(made.services[0].key) == 5
    assert condition(made, "chat", "CapacityAvailable")["status"] == "True"


@pytest.mark.parametrize("held_by", [{"mode": "Recommend"}, {"mode": "Observe"}, {"paused": True}])
@pytest.mark.parametrize("limit", [{"budgetPerHour": 30}, {"namespaces": [{"name": "team", "maxAccelerators": 10}]}])
def test_who_is_only_observed_takes_nothing_from_the_others(held_by: dict[str, Any], limit: dict[str, Any]) -> None:
    """Nothing is started for it, though it is told what would be."""
    observed = service("observed", scaling={"maxReplicas": 64}, **held_by)
    acted_on = service(created_at=1.0)

    def serving(*services: Service) -> int:
        made = world(*services, rate=100.0)
        made.extra["fleet"] = TokenFleetSpec.model_validate(FLEET.model_dump(by_alias=True) | limit)
        made.metrics[observed.key] = make_metrics(500.0, engines_reporting=1000)
        made.run(10)
        return made.serving(acted_on.key)

    assert serving(observed, acted_on) == serving(acted_on) > 1


def test_the_budget_pays_for_what_a_stalled_service_holds() -> None:
    stalled = service("stalled", created_at=0.0, engine={"extraArgs": ["--host=0.0.0.0"]})
    other = service("other", created_at=1.0)
    made = world(stalled, other, rate=200.0)
    made.extra["fleet"] = TokenFleetSpec.model_validate(FLEET.model_dump(by_alias=True) | {"budgetPerHour": 30})
    deployment = make_deployment(stalled, 8)
    made.children = {deployment.key: deployment}
    pods = [
        replace(make_pod(f"p{number}", service="stalled"), namespace="team", service=stalled.key) for number in range(8)
    ]
    made.pods = {pod.name: pod for pod in pods}
    made.run(10)
    price = H100.spec.price_per_hour
    assert made.serving(stalled.key) == 8
    assert price * (8 + made.serving(other.key)) == 30


def test_engines_of_a_service_that_is_stalled_count() -> None:
    broken = service("broken", scaling={"minReplicas": 2})
    made = world(broken, limits=(TEAM,))
    made.run(8)
    made.services = [
        replace(made.services[0], spec=None, error="spec: unreadable"),
        service(scaling={"minReplicas": 2}),
    ]
    made.run(8)
    assert held(made, "team") == 3
    assert made.serving(broken.key) == 2


# --- tiers and classes

OTHER = replace(H100, name="x100", spec=H100.spec.model_copy(update={"node_labels": {"kind": "x100"}}))
PROFILES = (H100_8B, replace(H100_8B, name="x", spec=H100_8B.spec.model_copy(update={"accelerator": "x100"})))
CLASSES: dict[str, Any] = {"accelerators": (H100, OTHER), "profiles": PROFILES}

NOT_FOR_TEAM = {
    "a tier": ({"tiers": ["Spot"]}, {}, "spec.tier: tier Elastic is not for namespace team: use Spot"),
    "a class": (
        {"accelerators": ["x100"]},
        {"placement": {"accelerators": ["x100", "h100"]}},
        "spec.placement.accelerators[1]: h100 is not for namespace team: use x100",
    ),
    "no class that exists": (
        {"accelerators": ["y100"]},
        {},
        "spec.placement.accelerators: namespace team may use y100 only, and there is no such AcceleratorClass",
    ),
}


@pytest.mark.parametrize(("limit", "spec", "said"), NOT_FOR_TEAM.values(), ids=NOT_FOR_TEAM)
def test_what_is_not_for_the_namespace_stalls_and_is_named(
    limit: dict[str, Any], spec: dict[str, Any], said: str
) -> None:
    made = world(service(**spec), service(namespace="other", **spec), limits=({"name": "team"} | limit,), **CLASSES)
    made.run(8)
    assert held(made, "team") == 0
    found = next(c for c in made.services[0].status["conditions"] if c["type"] == "Stalled")
    assert (found["status"], found["reason"]) == ("True", "NotAllowedInNamespace")
    assert found["message"].startswith(said)
    assert held(made, "other") > 0


def test_who_names_no_accelerator_gets_one_that_the_namespace_may_use() -> None:
    dear = replace(OTHER, spec=OTHER.spec.model_copy(update={"price_per_hour": 9.0}))
    limits = ({"name": "team", "accelerators": ["x100"]},)
    made = world(service(), limits=limits, accelerators=(H100, dear), profiles=PROFILES)
    made.nodes.append(make_node("x1", kind="x100"))
    made.run(8)
    (deployment,) = [key.name for key in made.children if key.kind == "Deployment"]
    assert deployment.startswith("chat-x100-")


def test_a_tier_that_is_taken_away_leaves_the_engines_serving() -> None:
    made = world(service(scaling={"minReplicas": 2}))
    made.run(8)
    made.extra["fleet"] = fleet({"name": "team", "tiers": ["Spot"]})
    made.run(8)
    assert made.serving(made.services[0].key) == 2
    assert condition(made, "chat", "Stalled")["reason"] == "NotAllowedInNamespace"


# --- in any fleet

SERVICES = st.lists(
    st.tuples(
        st.sampled_from(["team", "rest"]),
        st.integers(1, 6),
        st.sampled_from(["Elastic", "Spot", "Guaranteed"]),
        st.sampled_from([None, 1, 2, 4]),
        st.floats(0.1, 200.0),
    ),
    min_size=1,
    max_size=6,
)


def _drawn(index: int, drawn: tuple[str, int, str, int | None, float]) -> Service:
    namespace, fewest, tier, size, _ = drawn
    spec: dict[str, Any] = {"tier": tier, "scaling": {"minReplicas": fewest}, "engine": {"tensorParallelSize": size}}
    if tier == "Guaranteed":
        spec["objectives"] = {"volume": {"guaranteedTokensPerSecond": 500.0 * fewest}}
    architecture = {"parameters": 8_030_000_000, "layers": 32, "heads": 32, "kvHeads": 8, "headDim": 128}
    model = {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct", "architecture": architecture}
    return make_service(f"s{index}", namespace=namespace, created_at=float(index), model=model, **spec)


@settings(max_examples=60, deadline=None)
@given(SERVICES, st.integers(0, 12), st.integers(0, 12), st.integers(1, 5))
def test_limits_hold_in_any_fleet_in_every_round(
    drawn: list[tuple[str, int, str, int | None, float]], team: int, rest: int, nodes: int
) -> None:
    """As limits come, services grow, rates change and nodes are few."""
    services = [_drawn(index, one) for index, one in enumerate(drawn)]
    limits = ({"name": "team", "maxAccelerators": team}, {"name": "rest", "maxAccelerators": rest})
    made = world(*services, limits=limits)
    made.nodes = made.nodes[:nodes]
    for turn in range(6):
        rates = {one.key: found[4] if turn % 2 else 0.1 for one, found in zip(services, drawn, strict=True)}
        made.metrics = {key: make_metrics(rate, engines_reporting=1000) for key, rate in rates.items()}
        made.run(2)
        assert held(made, "team") <= team
        assert held(made, "rest") <= rest
