"""Where replicas go, and which go first."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.support.build import GPU, make_node, make_pod
from tokenservice.core.model import Node, Pod
from tokenservice.core.packing import Held, Yard, best_node, lacks, place, tightness, victims
from tokenservice.core.room import Room, rooms


def anywhere(_pod: Pod, _room: Room) -> bool:
    return True


def test_a_node_in_use_is_filled_before_another_is_opened() -> None:
    left = rooms([make_node("empty"), make_node("used")], [make_pod("a", node="used", gpus=2)])
    assert best_node(make_pod("new", node=None, gpus=2), left.values(), anywhere) == "used"


def test_of_two_nodes_in_use_the_fuller_one_is_taken() -> None:
    pods = [make_pod("a", node="n1", gpus=2), make_pod("b", node="n2", gpus=6)]
    left = rooms([make_node("n1"), make_node("n2")], pods)
    assert best_node(make_pod("new", node=None, gpus=2), left.values(), anywhere) == "n2"


def test_of_nodes_that_pack_alike_the_one_with_the_weights_is_taken_then_the_one_with_the_engine() -> None:
    nodes = [make_node(name) for name in ("bare", "engine", "weights")]
    held = (frozenset({"weights"}), frozenset({"engine"}))
    new = make_pod("new", node=None)
    assert place([new], rooms(nodes, []), anywhere, held=lambda _pod: held) == {new.uid: "weights"}
    assert place([new], rooms(nodes[:2], []), anywhere, held=lambda _pod: held) == {new.uid: "engine"}


def test_a_whole_node_is_not_opened_for_weights_that_lie_on_it() -> None:
    left = rooms([make_node("empty"), make_node("used")], [make_pod("a", node="used", gpus=2)])
    new = make_pod("new", node=None)
    assert place([new], left, anywhere, held=lambda _pod: (frozenset({"empty"}),)) == {new.uid: "used"}


def test_room_of_foreign_going_and_nominated_pods_is_taken() -> None:
    holders = {
        "foreign": make_pod("f", node="n1", service=None, gpus=8),
        "deleting": make_pod("d", node="n1", gpus=8, deleting=True),
        "nominated": make_pod("p", node=None, nominated_node="n1", gpus=8),
    }
    for name, holder in holders.items():
        left = rooms([make_node("n1")], [holder])
        assert best_node(make_pod("new", node=None), left.values(), anywhere) is None, name


def test_cordoned_and_unready_nodes_take_nothing() -> None:
    for node in (make_node("n1", cordoned=True), make_node("n1", ready=False)):
        new = make_pod("new", node=None)
        assert place([new], rooms([node], []), anywhere) == {new.uid: None}


def test_the_victim_is_on_the_node_nearest_to_empty() -> None:
    pods = [make_pod("a", node="n1"), make_pod("b", node="n1"), make_pod("c", node="n2")]
    left = rooms([make_node("n1"), make_node("n2")], pods)
    assert [pod.name for pod in victims(pods, left, 1)] == ["c"]


def test_a_node_with_foreign_pods_cannot_be_emptied_so_another_gives() -> None:
    ours = [make_pod("a", node="n1"), make_pod("b", node="n2"), make_pod("c", node="n2")]
    left = rooms([make_node("n1"), make_node("n2")], [*ours, make_pod("f", node="n1", service=None)])
    assert victims(ours, left, 1)[0].node == "n2"


def test_pods_that_do_not_serve_go_before_those_that_do() -> None:
    pods = [make_pod("a", node="n1"), make_pod("b", node="n2", ready=False), make_pod("c", node="n2")]
    left = rooms([make_node("n1"), make_node("n2")], pods)
    assert victims(pods, left, 1)[0].name == "b"


@given(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=24))
def test_tensor_parallel_sizes_pack_without_waste(sizes: list[int]) -> None:
    nodes = [make_node(f"n{index:02}") for index in range(24)]
    pods = [make_pod(f"p{index:02}", node=None, gpus=size) for index, size in enumerate(sizes)]
    chosen = place(pods, rooms(nodes, []), anywhere)
    assert None not in chosen.values()
    assert len(set(chosen.values())) == math.ceil(sum(sizes) / 8)


@given(st.lists(st.integers(1, 8), max_size=30), st.integers(1, 4))
def test_no_node_is_ever_overfilled(sizes: list[int], node_count: int) -> None:
    nodes = [make_node(f"n{index}") for index in range(node_count)]
    pods = {f"uid-p{i}": make_pod(f"p{i}", node=None, gpus=size) for i, size in enumerate(sizes)}
    held = {node.name: 0 for node in nodes}
    for uid, node in place(list(pods.values()), rooms(nodes, []), anywhere).items():
        if node is not None:
            held[node] += pods[uid].accelerators[GPU]
    assert all(count <= 8 for count in held.values())


PLACES = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 8), st.booleans()), min_size=1, max_size=8)
ASKING = st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([1, 2, 4, 8, 0])), max_size=12)


def in_zone(pod: Pod, room: Room) -> bool:
    return room.node.labels["zone"] == pod.variant


def zone_of(node: Node) -> str:
    return node.labels["zone"]


HOLDING = st.lists(st.frozensets(st.sampled_from([f"n{index}" for index in range(8)])), max_size=2).map(tuple)


def yard_of(places: list[tuple[str, int, bool]], held: Held = ()) -> Yard:
    nodes = [make_node(f"n{index}", zone=zone) for index, (zone, _, _) in enumerate(places)]
    tenants = [make_pod(f"h{i}", node=f"n{i}", gpus=taken) for i, (_, taken, _) in enumerate(places) if taken]
    cores = {f"n{index}": 0.5 if poor else 128.0 for index, (_, _, poor) in enumerate(places)}
    left = rooms([replace(node, cpu_cores=cores[node.name]) for node in nodes], tenants)
    return Yard(left.values(), in_zone, zone_of, lambda _pod: held)


def asking(sizes: list[tuple[str, int]]) -> list[Pod]:
    several = {GPU: 1, "example.org/nic": 0}
    return [
        make_pod(f"p{i:02}", node=None, variant=zone, cpu_cores=1.0, accelerators={GPU: size} if size else several)
        for i, (zone, size) in enumerate(sizes)
    ]


@given(PLACES, ASKING, HOLDING)
def test_the_index_of_rooms_finds_what_a_look_at_every_node_finds(
    places: list[tuple[str, int, bool]], sizes: list[tuple[str, int]], held: Held
) -> None:
    yard = yard_of(places, held)
    for pod in asking(sizes):
        assert best_node(pod, list(yard.rooms.values()), in_zone, held) == yard.fill(pod)


@given(PLACES, ASKING, HOLDING)
def test_images_only_decide_between_nodes_that_are_as_good_for_packing(
    places: list[tuple[str, int, bool]], sizes: list[tuple[str, int]], held: Held
) -> None:
    knowing, unaware = yard_of(places, held), yard_of(places)
    for pod in asking(sizes):
        chosen, other = knowing.best(pod), unaware.best(pod)
        assert (chosen is None) == (other is None)
        if chosen is not None and other is not None:
            assert tightness(pod, knowing.rooms[chosen])[:2] == tightness(pod, knowing.rooms[other])[:2]
            assert lacks(chosen, held) <= lacks(other, held)


@given(PLACES, ASKING)
def test_a_trial_leaves_the_rooms_as_they_were(
    places: list[tuple[str, int, bool]], sizes: list[tuple[str, int]]
) -> None:
    yard, pods = yard_of(places), asking(sizes)
    before = dict(yard.rooms)
    others = [room for name, room in before.items() if name != "n0"]
    chosen = Yard(others, in_zone, zone_of).place(pods)
    assert yard.holds_elsewhere(pods, "n0") == (None not in chosen.values())
    assert yard.rooms == before
    assert yard.place(pods) == yard_of(places).place(pods)
