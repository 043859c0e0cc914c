"""Where replicas go, and which go first."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tests.support.build import GPU, make_node, make_pod
from tokenservice.core.model import Pod
from tokenservice.core.packing import best_node, place, victims
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


def test_room_of_foreign_going_and_nominated_pods_is_taken() -> None:
    holders = {
        "foreign": make_pod("f", node="n1", service=None, gpus=8),
        "deleting": make_pod("d", node="n1", gpus=8, deleting=True),
        "nominated": make_pod("p", node=None, nominated_node="n1", gpus=8),
    }
    for name, holder in holders.items():
        left = rooms([make_node("n1")], [holder])
        assert best_node(make_pod("new", node=None), left.values(), anywhere) is None, name


def test_finished_pods_hold_no_room() -> None:
    left = rooms([make_node("n1")], [make_pod("done", node="n1", gpus=8, phase="Succeeded")])
    assert left["n1"].free[GPU] == 8


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
