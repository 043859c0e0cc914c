"""Decisions run in a circle against a miniature cluster: do they keep their promises?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.build import H100, H100_8B, VARIANT, make_metrics, make_node, make_pod, make_service
from tests.support.world import World
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.capacity import DEFAULT
from tokenservice.core.decide import decide
from tokenservice.core.facts import Facts
from tokenservice.core.model import (
    Apply,
    Delete,
    Means,
    Missing,
    Place,
    Problem,
    Reason,
    Service,
    SetDeletionCost,
    SetServing,
)
from tokenservice.core.moves import departures
from tokenservice.core.outlook import outlook
from tokenservice.core.repack import LEAVING

CHAT = make_service("chat", scaling={"minReplicas": 2})
NO_DATA = Missing("Unreachable", "Prometheus does not answer")


def world(*services: Service, nodes: int = 3, rate: float = 0.5, **changes: Any) -> World:
    made = World(services=list(services or (CHAT,)), nodes=[make_node(f"n{i}") for i in range(1, nodes + 1)], **changes)
    made.metrics = {service.key: measured(made, service, rate) for service in made.services}
    return made


def measured(made: World, service: Service, rate: float, peak: float | None = None) -> Any:
    return make_metrics(rate, engines_reporting=1000, peak_requests_per_second=rate if peak is None else peak)


def test_a_new_service_gets_its_children_and_serves() -> None:
    made = world()
    made.run(8)
    kinds = {key.kind for key in made.children}
    assert kinds >= {"Deployment", "Service", "PodDisruptionBudget", "ServiceAccount", "NetworkPolicy"}
    assert made.serving(CHAT.key) == 2


def test_engines_of_a_new_service_wait_for_what_their_pods_need_and_for_nothing_else() -> None:
    actions = {action.id.split("/")[1]: action for action in world().round().actions}
    engines = actions["Deployment"]
    assert set(engines.after) == {actions["ServiceAccount"].id, actions["NetworkPolicy"].id}
    assert actions["Service"].after == actions["PodDisruptionBudget"].after == (engines.id,)


def test_a_settled_world_is_left_alone() -> None:
    made = world()
    made.run(30)
    for plan in made.run(20):
        assert plan.actions == ()
        assert plan.statuses == ()
        assert plan.events == ()


def test_the_fleets_status_has_the_means_that_prometheus_remembers() -> None:
    means = Means(hour=0.42, day=Missing("TooFewSamples", "too little for 24h"))
    made = world(extra={"fleet_object": {"metadata": {"name": "default", "uid": "u"}}, "fleet_means": means})
    (status,) = (write.status for write in made.round().statuses if write.key.kind == "TokenFleet")
    assert status["utilization1h"] == 0.42
    assert "utilization24h" not in status


def test_a_fleet_of_which_nothing_is_measured_has_no_utilization_and_not_none_of_it() -> None:
    made = world(extra={"fleet_object": {"metadata": {"name": "default", "uid": "u"}}})
    made.run(8)
    made.metrics = dict.fromkeys(made.metrics, NO_DATA)
    made.now += 3600
    plan = made.round()
    (status,) = (write.status for write in plan.statuses if write.key.kind == "TokenFleet")
    assert "utilization" not in status
    assert "waterfall" not in status
    assert "fleet_utilization_ratio" not in plan.metrics


EXTREME = st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 1e6, 1e12])


@settings(max_examples=60)
@given(st.lists(EXTREME, min_size=9, max_size=9))
def test_no_numbers_of_one_service_keep_others_from_being_decided(figures: list[float]) -> None:
    """Whoever is scraped for a service may export what he likes, up to what the reader lets through."""
    other = make_service("other", scaling={"minReplicas": 2})
    made = world(CHAT, other)
    made.run(6)
    names = (
        "peak_requests_per_second",
        "output_tokens_per_second",
        "input_tokens_per_second",
        "mean_input_tokens",
        "mean_output_tokens",
        "running",
        "waiting",
        "mean_tpot_seconds",
    )
    rate, *rest = figures
    made.metrics[CHAT.key] = make_metrics(rate, engines_reporting=1000, **dict(zip(names, rest, strict=True)))
    made.run(4)
    assert made.serving(other.key) == 2


def test_a_policy_that_cannot_be_read_stalls_the_fleet_with_the_field() -> None:
    problem = Problem(Reason.INVALID_SPEC, "spec.budgetPerHour", "no number: the last policy that could be read holds")
    made = world(extra={"fleet_object": {"metadata": {"name": "default", "uid": "u"}}, "fleet_problem": problem})
    (status,) = (write.status for write in made.round().statuses if write.key.kind == "TokenFleet")
    (stalled,) = (it for it in status["conditions"] if it["type"] == "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "InvalidSpec")
    assert "spec.budgetPerHour" in stalled["message"]
    assert "the last policy that could be read holds" in stalled["message"]


def test_more_demand_brings_more_replicas_at_once() -> None:
    made = world()
    made.run(10)
    made.metrics[CHAT.key] = measured(made, CHAT, 60.0)
    plan = made.round()
    assert any(isinstance(a, Apply) and a.reason is Reason.SCALED_UP for a in plan.actions)


def test_missing_metrics_never_scale_down() -> None:
    made = world(rate=60.0)
    made.run(10)
    before = made.serving(CHAT.key)
    assert before > 2
    made.metrics[CHAT.key] = NO_DATA
    made.run(50)
    assert made.serving(CHAT.key) == before


OWED = make_service(
    "owed", tier="Guaranteed", objectives={"volume": {"guaranteedTokensPerSecond": 9_000}}, scaling={"minReplicas": 1}
)


def lengths(prompt: float, answer: float, cached: float = 0.0) -> Any:
    """So many requests that their lengths are taken as they are."""
    return make_metrics(
        50.0,
        mean_input_tokens=prompt,
        mean_output_tokens=answer,
        prefix_hit_rate=cached,
        engines_reporting=1000,
        peak_requests_per_second=50.0,
    )


@pytest.mark.parametrize(
    ("prompt", "answer", "cached"),
    [(1155, 211, 0), (300, 900, 0), (4_000, 60, 0), (2_000, 20, 0.8), (50, 2_000, 0.3)],
)
def test_an_outage_of_metrics_changes_nothing_that_is_owed(prompt: float, answer: float, cached: float) -> None:
    made = world(OWED, nodes=12)
    made.metrics[OWED.key] = lengths(prompt, answer, cached)
    made.run(30)
    before = floor_and_wish(made)
    made.metrics[OWED.key] = NO_DATA
    made.run(10)
    assert floor_and_wish(made) == before


def floor_and_wish(made: World) -> tuple[int | None, int]:
    """What the only service is owed, and the replicas that its Deployments ask for."""
    seen = outlook(Facts(made.snapshot()), made.services[0])
    wish = sum(child.body["spec"]["replicas"] for key, child in made.children.items() if key.kind == "Deployment")
    return seen.scaling and seen.scaling.floor, wish


def test_a_guarantee_raised_while_metrics_are_missing_is_met_with_the_lengths_last_measured() -> None:
    made = world(OWED, nodes=12)
    made.metrics[OWED.key] = lengths(1000, 800)
    made.run(30)
    (floor, _), made.metrics[OWED.key] = floor_and_wish(made), NO_DATA
    more = make_service("owed", tier="Guaranteed", objectives={"volume": {"guaranteedTokensPerSecond": 36_000}})
    made.services = [replace(made.services[0], spec=more.spec, generation=2)]
    made.run(10)
    assert floor is not None
    raised, wish = floor_and_wish(made)
    assert raised is not None
    assert 4 * (floor - 1) < raised <= min(4 * floor, wish)


def test_what_is_owed_before_anything_was_measured_follows_from_the_usual_lengths() -> None:
    made = world(OWED, nodes=12)
    made.metrics[OWED.key] = NO_DATA
    made.run(2)
    unknown = floor_and_wish(made)
    made.metrics[OWED.key] = replace(
        lengths(DEFAULT.input_tokens, DEFAULT.output_tokens), requests_per_second=0.0, peak_requests_per_second=0.0
    )
    assert unknown == (floor_and_wish(made)[0],) * 2
    assert unknown[1] > 1


def test_partial_metrics_never_scale_down() -> None:
    made = world(rate=60.0)
    made.run(10)
    before = made.serving(CHAT.key)
    made.metrics[CHAT.key] = replace(measured(made, CHAT, 0.1), engines_reporting=1)
    made.run(50)
    assert made.serving(CHAT.key) == before


def test_less_demand_takes_the_replicas_away_and_stays_above_the_floor() -> None:
    made = world(rate=60.0)
    made.run(10)
    made.metrics[CHAT.key] = measured(made, CHAT, 0.1)
    made.run(30)
    assert made.serving(CHAT.key) == 2


def test_replicas_of_small_services_share_a_node() -> None:
    services = [make_service(f"s{i}", created_at=i, scaling={"minReplicas": 2}) for i in range(4)]
    made = world(*services, nodes=4)
    made.run(10)
    assert len({pod.node for pod in made.pods.values()}) == 1


def test_a_node_that_can_be_emptied_is_emptied_without_losing_a_serving_replica() -> None:
    made = world()
    made.run(10)
    (used,) = {pod.node for pod in made.pods.values()}
    other = next(node.name for node in made.nodes if node.name != used)
    pods = sorted(made.pods.values(), key=lambda pod: pod.name)
    made.pods[pods[0].name] = replace(pods[0], node=other)
    made.now += 10_000
    least = 99
    for _ in range(60):
        made.round()
        least = min(least, made.serving(CHAT.key))
    assert len({pod.node for pod in made.pods.values()}) == 1
    assert least == 2
    assert any(isinstance(a, SetServing) and not a.serving for a in made.history)


def test_a_move_whose_successor_finds_no_room_is_given_up() -> None:
    made = world(nodes=1)
    made.run(10)
    pod = next(iter(made.pods.values()))
    made.pods[pod.name] = replace(pod, deletion_cost=LEAVING)
    made.nodes[0] = replace(made.nodes[0], allocatable={"nvidia.com/gpu": 2})
    made.run(30)
    assert all(pod.deletion_cost > LEAVING for pod in made.pods.values())
    assert made.serving(CHAT.key) == 2


def test_a_move_whose_successor_is_refused_is_given_up() -> None:
    """No pod of it exists, so none is unschedulable; the quota may stay full for ever."""
    made = world(nodes=2)
    made.run(10)
    pod = next(iter(made.pods.values()))
    made.pods[pod.name] = replace(pod, deletion_cost=LEAVING)
    (key,) = [key for key in made.children if key.kind == "Deployment"]
    body = made.children[key].body
    refused = {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: x"}]}
    child = replace(made.children[key], body=body | {"status": body["status"] | refused})
    facts = Facts(replace(made.snapshot(), children=made.children | {key: child}))
    marks = departures(facts, {CHAT.key: {VARIANT}}, {}, {}, made.now).actions
    assert [(a.pod.name, a.cost) for a in marks if isinstance(a, SetDeletionCost)] == [(pod.name, 0)]


def test_a_move_of_a_paused_service_holds_up_no_other() -> None:
    other = make_service("other", scaling={"minReplicas": 2})
    made = world(CHAT, other)
    made.run(10)
    mine = next(pod for pod in made.pods.values() if pod.service == CHAT.key)
    made.pods[mine.name] = replace(mine, deletion_cost=LEAVING)
    paused = make_service("chat", paused=True, scaling={"minReplicas": 2})
    made.services = [replace(s, spec=paused.spec) if s.key == CHAT.key else s for s in made.services]
    theirs = [pod for pod in made.pods.values() if pod.service == other.key]
    spare = next(node.name for node in made.nodes if node.name not in {pod.node for pod in made.pods.values()})
    made.pods[theirs[0].name] = replace(theirs[0], node=spare)
    made.now += 10_000
    made.run(60)
    assert len({pod.node for pod in made.pods.values() if pod.service == other.key}) == 1


def test_counts_that_no_cluster_holds_are_not_imagined_one_by_one() -> None:
    """`kubectl scale deployment` takes any number, and without metrics counts hold."""
    made = world(nodes=1)
    made.run(10)
    (key,) = [key for key in made.children if key.kind == "Deployment"]
    child = made.children[key]
    body = child.body | {"spec": child.body["spec"] | {"replicas": 2_000_000_000}}
    gated = make_pod("new", node=None, gated=True, ready=False)
    snapshot = replace(
        made.snapshot(),
        metrics={},
        children=made.children | {key: replace(child, body=body)},
        pods=(*made.snapshot().pods, gated),
    )
    plan = decide(snapshot, made.now)
    assert any(isinstance(action, Place) for action in plan.actions)


def test_two_services_race_for_the_last_accelerators_and_the_guaranteed_one_wins() -> None:
    guaranteed = make_service(
        "owed",
        created_at=2.0,
        tier="Guaranteed",
        objectives={"volume": {"guaranteedTokensPerSecond": 10}},
        scaling={"minReplicas": 8},
    )
    elastic = make_service("elastic", created_at=1.0, scaling={"minReplicas": 8})
    made = world(elastic, guaranteed, nodes=1)
    made.run(10)
    assert (made.serving(guaranteed.key), made.serving(elastic.key)) == (8, 0)


def test_foreign_pods_hold_their_room() -> None:
    made = world(nodes=1)
    made.pods["foreign"] = make_pod("foreign", node="n1", service=None, gpus=7)
    made.run(10)
    assert made.serving(CHAT.key) == 1
    conditions = {c["type"]: c for c in made.services[0].status["conditions"]}
    assert conditions["CapacityAvailable"]["status"] == "False"


def test_residency_is_never_traded() -> None:
    resident = make_service("chat", scaling={"minReplicas": 2}, placement={"residency": {"regions": ["eu-1"]}})
    made = World(
        services=[resident],
        nodes=[
            make_node("us", **{"topology.kubernetes.io/region": "us-1"}),
            make_node("eu", **{"topology.kubernetes.io/region": "eu-1"}),
        ],
    )
    made.metrics = {resident.key: measured(made, resident, 500.0)}
    made.run(5)
    assert not any(isinstance(a, Place) and a.node == "us" for a in made.history)


def test_an_invalid_service_harms_no_other_and_keeps_what_it_has() -> None:
    bad = make_service("bad", created_at=5.0)
    made = world(CHAT, bad)
    made.run(10)
    serving = made.serving(bad.key)
    made.services = [
        replace(s, spec=None, error="spec.engine: no such engine", generation=2) if s.key == bad.key else s
        for s in made.services
    ]
    made.run(20)
    assert made.serving(bad.key) == serving
    assert made.serving(CHAT.key) == 2
    stalled = {c["type"]: c["status"] for s in made.services if s.key == bad.key for c in s.status["conditions"]}
    assert stalled["Stalled"] == "True"


@pytest.mark.parametrize("change", [{"mode": "Observe"}, {"mode": "Recommend"}, {"paused": True}])
def test_who_may_only_look_touches_nothing(change: dict[str, Any]) -> None:
    looked_at = make_service("chat", **change)
    made = world(looked_at)
    made.run(5)
    assert made.history == []
    assert made.services[0].status["decision"]["message"]


@pytest.mark.parametrize("change", [{"mode": "Observe"}, {"mode": "Recommend"}, {"paused": True}, {}])
def test_replicas_that_nobody_is_to_start_are_recommended_and_not_missing(change: dict[str, Any]) -> None:
    figures = world(make_service("chat", **change)).round().metrics
    told, other = ("service_recommended_replicas", "service_desired_replicas")[:: 1 if change else -1]
    assert figures[told] == {(("namespace", "default"), ("service", "chat")): 1.0}
    assert other not in figures


def test_a_gated_pod_is_lifted_even_when_its_service_is_paused() -> None:
    paused = make_service("chat", paused=True)
    made = world(paused)
    made.pods["p"] = make_pod("p", node=None, gated=True, serving=None, created_at=made.now)
    made.round()
    assert any(isinstance(a, Place) for a in made.history)


def test_nothing_is_removed_while_a_view_is_stale() -> None:
    made = world(rate=60.0)
    made.run(10)
    before = made.serving(CHAT.key)
    made.metrics[CHAT.key] = measured(made, CHAT, 0.1)
    made.extra["stale_kinds"] = ("pods",)
    plans = made.run(20)
    assert made.serving(CHAT.key) == before
    assert not any(isinstance(a, Delete | SetDeletionCost) for plan in plans for a in plan.actions)


def test_a_cordoned_node_is_left_by_surge_and_shift() -> None:
    made = world()
    made.run(10)
    (used,) = {pod.node for pod in made.pods.values()}
    made.nodes = [replace(node, schedulable=node.name != used) for node in made.nodes]
    least = 99
    for _ in range(30):
        made.round()
        least = min(least, made.serving(CHAT.key))
    assert used not in {pod.node for pod in made.pods.values()}
    assert (least, made.serving(CHAT.key)) == (2, 2)


def test_a_fixed_count_follows_kubectl_scale() -> None:
    fixed = make_service("chat", replicas=3)
    made = world(fixed)
    made.run(10)
    assert made.serving(fixed.key) == 3
    made.services = [replace(made.services[0], spec=make_service("chat", replicas=1).spec, generation=2)]
    made.run(10)
    assert made.serving(fixed.key) == 1


def test_who_names_no_accelerator_gets_one_that_there_is() -> None:
    cheaper = replace(
        H100,
        name="a-cheaper",
        spec=H100.spec.model_copy(update={"price_per_hour": 0.1, "node_labels": {"kind": "absent"}}),
    )
    profile = replace(H100_8B, name="cheaper", spec=H100_8B.spec.model_copy(update={"accelerator": "a-cheaper"}))
    made = world(extra={"accelerators": (cheaper, H100), "profiles": (profile, H100_8B)})
    made.run(10)
    assert made.serving(CHAT.key) == 2


def test_long_prompts_do_not_stall_a_service_whose_spec_is_sound() -> None:
    made = world()
    made.run(10)
    made.metrics[CHAT.key] = replace(measured(made, CHAT, 30.0), mean_input_tokens=350_000.0)
    made.run(5)
    conditions = {c["type"]: c["status"] for c in made.services[0].status["conditions"]}
    assert conditions["Stalled"] == "False"
    assert made.serving(CHAT.key) >= 2


def test_a_budget_never_stops_what_is_owed() -> None:
    owed = make_service("owed", tier="Guaranteed", objectives={"volume": {"guaranteedTokensPerSecond": 20_000}})
    made = world(owed, extra={"fleet": TokenFleetSpec(budget_per_hour=0.01)})
    made.run(10)
    assert made.serving(owed.key) >= 4


def test_a_budget_stops_growth_that_is_not_owed() -> None:
    made = world(extra={"fleet": TokenFleetSpec(budget_per_hour=0.01)}, rate=100.0)
    made.run(10)
    assert made.serving(CHAT.key) == 2
    told = {one["type"]: one for one in made.services[0].status["conditions"]}
    assert (told["CapacityAvailable"]["status"], told["CapacityAvailable"]["reason"]) == ("False", "BudgetLimit")
    assert "budgetPerHour" in told["CapacityAvailable"]["message"]
    assert told["Ready"]["status"] == "True", "what is owed serves"


def test_a_fixed_count_that_grows_keeps_the_service_ready() -> None:
    fixed = make_service("chat", replicas=1)
    made = world(fixed)
    made.run(10)
    made.services = [replace(made.services[0], spec=make_service("chat", replicas=3).spec, generation=2)]
    made.round()
    made.round()
    ready = {c["type"]: c["status"] for c in made.services[0].status["conditions"]}
    assert ready["Ready"] == "True"


SETTLED_ROUNDS = 240
"""A node rests for 300 s, then each of its at most eight replicas moves in its turn, nine rounds each; twice."""


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("rate"), st.floats(0, 200)),
            st.tuples(st.just("missing"), st.just(0.0)),
            st.tuples(st.just("cordon"), st.integers(1, 3)),
            st.tuples(st.just("uncordon"), st.integers(1, 3)),
            st.tuples(st.just("restart"), st.just(0.0)),
        ),
        max_size=8,
    )
)
def test_whatever_happens_the_floor_serves_and_silence_follows(happenings: list[tuple[str, float]]) -> None:
    made = world()
    made.run(10)
    for what, value in happenings:
        if what == "rate":
            made.metrics[CHAT.key] = measured(made, CHAT, value)
        elif what == "missing":
            made.metrics[CHAT.key] = NO_DATA
        elif what == "restart":
            made.proposals = ()
        else:
            made.nodes = [
                replace(node, schedulable=what == "uncordon") if node.name == f"n{value}" else node
                for node in made.nodes
            ]
        for _ in range(4):
            made.round()
            assert made.serving(CHAT.key) >= 2
    made.nodes = [replace(node, schedulable=True) for node in made.nodes]
    made.run(SETTLED_ROUNDS)
    assert all(not plan.actions for plan in made.run(5))


@pytest.mark.parametrize(
    "seen",
    {"missing": NO_DATA, "of the old replica only": make_metrics(0.5, engines_reporting=1)}.values(),
    ids=["missing", "partial"],
)
def test_a_surge_is_no_reason_for_more_while_the_count_is_held(seen: Any) -> None:
    one = make_service("chat")
    made = world(one)
    made.run(10)
    made.metrics[one.key] = seen
    (used,) = {pod.node for pod in made.pods.values()}
    made.nodes = [replace(node, schedulable=node.name != used) for node in made.nodes]
    most = 0
    for _ in range(20):
        made.round()
        most = max(most, len(made.pods))
    assert most == 2
    assert made.serving(one.key) == 1
    assert used not in {pod.node for pod in made.pods.values()}
