"""YAML as kubectl reads it, composed into nodes that know the line they stand on.

Whoever judges a file wants to say where the error is; the values alone no longer know. A node's mark also carries
the name of its file, so nodes of several files may be put together and still point home.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

Path = tuple[str | int, ...]


class Loader(yaml.SafeLoader):
    """YAML as kubectl reads it: dates stay text."""


Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def composed(text: str, name: str) -> list[yaml.Node]:
    """The documents of a text; marks say `name`. Raises yaml.YAMLError."""
    loader = Loader(text)
    loader.name = name
    try:
        nodes = []
        while loader.check_node():
            nodes.append(loader.get_node())
    finally:
        loader.dispose()
    return [node for node in nodes if node is not None]


def constructed(node: yaml.Node) -> Any:
    """The value of a node. Raises yaml.YAMLError for tags that kubectl does not know."""
    loader = Loader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def twice(node: yaml.Node, above: tuple[yaml.Node, ...] = ()) -> Iterator[tuple[str, int]]:
    """Keys that a mapping has twice, and their lines: kubectl refuses them, other tools take the last."""
    if node in above:  # an alias to what it is part of
        return
    inside = (*above, node)
    if isinstance(node, yaml.MappingNode):
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        names = [key.value for key in keys]
        yield from ((key.value, key.start_mark.line + 1) for n, key in enumerate(keys) if key.value in names[:n])
        for _, value in node.value:
            yield from twice(value, inside)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from twice(item, inside)


def mark_of(node: yaml.Node, path: Path) -> yaml.Mark:
    """Where the field stands, or the deepest part of its path that is there."""
    mark = node.start_mark
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == part), None)
            if pair is None:
                break
            mark, node = pair[0].start_mark, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
    return mark
