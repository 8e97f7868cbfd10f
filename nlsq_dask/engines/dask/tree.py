"""The tree that adds the answers of the groups of a pass, and the count of a pass's blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

# Number of sums that one task of the tree adds. Widths of 8 to 32 were equally fast.
TREE_WIDTH = 32

# Called with the number of blocks that are done in a pass, and that of all blocks.
BlockProgress = Callable[[int, int], None]


def tree(keys: list[Any], name: str) -> Iterator[tuple[tuple[str, int, int], list[Any]]]:
    """Nodes of a tree over keys, each with the keys that it adds, in order; the root is last."""
    level = 0
    while level == 0 or len(keys) > 1:
        nodes = []
        for i, start in enumerate(range(0, len(keys), TREE_WIDTH)):
            node = (name, level, i)
            nodes.append(node)
            yield node, keys[start : start + TREE_WIDTH]
        keys = nodes
        level += 1
