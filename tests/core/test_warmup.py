"""Nodes on which the images of the next replicas are held ready."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.rendering import DIGEST, SETTINGS, make_variant
from tests.core.test_packing import ASKING, HOLDING, PLACES, asking, in_zone, yard_of
from tests.support.build import FLEET, GPU, MODEL, make_metrics, make_node, make_service, make_spec
from tests.support.pod_security import violations
from tests.support.world import World
from tokenservice.core.decide import decide
from tokenservice.core.images import needed_by
from tokenservice.core.model import Apply, Child, Delete, Json, ObjectKey, ServiceKey
from tokenservice.core.names import MANAGED_BY_LABEL, SERVICE_LABEL, VARIANT_LABEL, WARM_UP_LABEL
from tokenservice.core.packing import Held, tightness
from tokenservice.core.warmup import named_in, pod_template

KEY = ServiceKey("team", "chat")
ENGINE = "example.org/vllm:v0.32.0"


def world(*, nodes: int = 3, **scaling: Any) -> World:
    service = make_service("chat", scaling={"minReplicas": 1, "warmNodes": 1} | scaling)
    made = World(services=[service], nodes=[make_node(f"n{number}", accelerators=2) for number in range(nodes)])
    made.metrics = {service.key: make_metrics(0.1)}
    return made


def respecified(made: World, **spec: Any) -> None:
    made.services = [replace(one, spec=make_spec(**spec)) for one in made.services]


def held(made: World) -> Child | None:
    return made.children.get(ObjectKey("DaemonSet", "default", "chat-warm-up"))


def chosen(made: World) -> tuple[str, ...]:
    there = held(made)
    return named_in(there) if there is not None else ()


def replicas_on(made: World) -> set[str | None]:
    return {pod.node for pod in made.pods.values()}


# --- which nodes ---------------------------------------------------------------------------------------------------


def test_the_nodes_are_those_where_the_next_replicas_would_be_placed() -> None:
    made = world(warmNodes=2)
    made.run(6)
    assert replicas_on(made) == {"n0"}
    assert chosen(made) == ("n0", "n1"), "the one in use first, it has room for one more"
    respecified(made, scaling={"minReplicas": 2, "warmNodes": 2})
    made.run(6)
    assert replicas_on(made) == {"n0"}
    assert chosen(made) == ("n1", "n2"), "a full node is of no use to the next replica"


def test_a_node_that_was_chosen_stays_while_others_are_as_good() -> None:
    made = world(nodes=3)
    made.run(3)
    respecified(made, scaling={"minReplicas": 2, "warmNodes": 1})
    made.run(6)
    assert chosen(made) == ("n1",)
    made.add_node(make_node("a-new-one", accelerators=2))
    made.run(3)
    assert chosen(made) == ("n1",)
    made.extra["holders"] = {ENGINE: frozenset({"n2"})}
    made.run(3)
    assert chosen(made) == ("n2",), "what is there already needs no pull"


@pytest.mark.parametrize("bad", ["cordoned", "not ready"])
def test_nodes_that_take_no_replica_are_not_warmed(bad: str) -> None:
    made = world(nodes=1)
    made.nodes = [replace(made.nodes[0], schedulable=bad != "cordoned", ready=bad != "not ready")]
    made.run(3)
    assert held(made) is None


def test_a_namespace_holds_no_more_nodes_ready_than_it_may_have_replicas() -> None:
    made = world(warmNodes=3)
    limit = {"namespaces": [{"name": "default", "maxAccelerators": 2}]}
    made.extra["fleet"] = type(FLEET).model_validate(FLEET.model_dump(by_alias=True, exclude_none=True) | limit)
    made.run(6)
    assert len(chosen(made)) == 2


@given(PLACES, ASKING, HOLDING, st.integers(0, 9))
def test_the_first_nodes_are_those_that_a_look_at_every_node_puts_first(
    places: list[tuple[str, int, bool]], sizes: list[tuple[str, int]], held: Held, count: int
) -> None:
    yard = yard_of(places)
    for pod in asking(sizes):
        fitting = [room for room in yard.rooms.values() if room.fits(pod) and in_zone(pod, room)]
        ranked = sorted(fitting, key=lambda room: tightness(pod, room, held))
        assert yard.first(pod, count, held) == [room.node.name for room in ranked][:count]


# --- what is there, and for how long ---------------------------------------------------------------------------------


def test_nothing_is_there_unless_it_is_asked_for_and_nothing_is_left_of_it_afterwards() -> None:
    made = world(warmNodes=0)
    made.run(4)
    assert not any("warm-up" in key.name for key in made.children)
    respecified(made, scaling={"warmNodes": 1})
    made.run(2)
    assert sorted(key.kind for key in made.children if "warm-up" in key.name) == ["DaemonSet", "NetworkPolicy"]
    respecified(made)
    made.run(2)
    assert not any("warm-up" in key.name for key in made.children)


def test_with_no_change_in_nothing_is_written() -> None:
    made = world(warmNodes=2)
    made.run(12)
    assert [plan.actions for plan in made.run(3)] == [(), (), ()]


def test_while_a_view_is_stale_nothing_is_deleted() -> None:
    made = world()
    made.run(4)
    respecified(made)
    made.extra["stale_kinds"] = ("Node",)
    assert not [action for action in decide(made.snapshot(), made.now).actions if isinstance(action, Delete)]


@pytest.mark.parametrize("change", [{"mode": "Observe"}, {"paused": True}])
def test_who_only_looks_on_changes_nothing_of_it(change: dict[str, Any]) -> None:
    made = world()
    made.run(4)
    before = held(made)
    respecified(made, **change)
    made.run(2)
    assert held(made) == before


def test_it_counts_as_no_replica_and_no_change_of_engines() -> None:
    made, without = world(warmNodes=2), world(warmNodes=0)
    for one in (made, without):
        one.run(10)
    (mine,), (plain,) = made.services, without.services
    same = ("replicas", "readyReplicas", "desiredReplicas", "variants")
    assert {name: mine.status.get(name) for name in same} == {name: plain.status.get(name) for name in same}
    conditions = {one["type"]: one["status"] for one in mine.status["conditions"]}
    respecified(made, scaling={"warmNodes": 1})
    plan = decide(made.snapshot(), made.now)
    assert [action.manifest["kind"] for action in plan.actions if isinstance(action, Apply)] == ["DaemonSet"]
    assert conditions["Reconciling"] == "False"
    assert len(made.pods) == len(without.pods) == 1


def test_the_status_names_the_nodes_that_have_every_image() -> None:
    made = world(warmNodes=2)
    made.run(6)
    assert "warmNodes" not in made.services[0].status
    made.extra["holders"] = {ENGINE: frozenset({"n0", "n2"})}
    made.run(3)
    assert chosen(made) == ("n0", "n2")
    assert made.services[0].status["warmNodes"] == ["n0", "n2"]


def test_a_node_with_a_part_of_the_images_is_not_ready() -> None:
    adapter = f"sha256:{'e' * 64}"
    adapters = [{"name": "tone", "uri": f"oci://example.org/tone@{adapter}"}]
    made = world(warmNodes=2)
    respecified(made, model={"uri": f"hf://{MODEL}", "adapters": adapters}, scaling={"warmNodes": 2})
    for holders, ready in (
        ({ENGINE: frozenset({"n0", "n1"})}, None),
        ({ENGINE: frozenset({"n0", "n1"}), adapter: frozenset({"n0"})}, ["n0"]),
    ):
        made.extra["holders"] = holders
        made.run(6)
        assert made.services[0].status.get("warmNodes") == ready


# --- its pods ------------------------------------------------------------------------------------------------------


def template(settings: Any = SETTINGS, **spec: Any) -> Json:
    return pod_template(KEY, make_spec(**spec), make_variant(), settings)


def test_the_pods_have_the_images_of_a_replica_and_nothing_else_of_it() -> None:
    adapters = [{"name": "tone", "uri": f"oci://example.org/tone@{DIGEST}"}, {"name": "x", "uri": "pvc://claim/x"}]
    model = {"uri": f"oci://example.org/m@{DIGEST}", "credentials": {"name": "registry"}, "adapters": adapters}
    pod = template(model=model)["spec"]
    assert needed_by(pod)[:2] == (DIGEST, DIGEST)
    assert len(pod["volumes"]) == len(pod["containers"][0]["volumeMounts"]) == 2
    assert all(mount["readOnly"] for mount in pod["containers"][0]["volumeMounts"])
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert GPU not in pod["containers"][0]["resources"]["limits"]
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in pod["containers"][0]["env"]
    assert pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("uri", [f"hf://{MODEL}", "s3://bucket/m", "pvc://claim/m"])
def test_of_other_sources_the_engines_image_alone_is_held(uri: str) -> None:
    pod = template(model={"uri": uri, "credentials": {"name": "token"}})["spec"]
    assert (pod["volumes"], len(needed_by(pod))) == ([], 1)
    assert not [one for one in pod["containers"][0]["env"] if "valueFrom" in one]


def test_nothing_that_looks_for_replicas_finds_the_pods() -> None:
    labels = template()["metadata"]["labels"]
    assert labels == {WARM_UP_LABEL: "chat"}
    assert not {SERVICE_LABEL, VARIANT_LABEL, MANAGED_BY_LABEL} & labels.keys()


def test_the_pods_pass_pod_security_restricted() -> None:
    assert violations(template(model={"uri": f"oci://example.org/m@{DIGEST}"})["spec"]) == ()


def test_what_an_administrator_adds_to_engines_holds_here_too_but_for_what_runs() -> None:
    patch = {"spec": {"imagePullSecrets": [{"name": "site"}], "volumes": [{"name": "x", "hostPath": {"path": "/"}}]}}
    pod = template(replace(SETTINGS, pod_patch=patch))["spec"]
    assert pod["imagePullSecrets"] == [{"name": "site"}]
    assert pod["volumes"] == []
