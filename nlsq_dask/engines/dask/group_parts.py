"""Groups of fewer blocks, made from the nodes of a group. Pure."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

from nlsq_dask.engines.dask.alike import AlikeStep
from nlsq_dask.engines.dask.groups import Stream, without_collections
from nlsq_dask.engines.dask.steps import Group, Step, make_group
from nlsq_dask.io.chunks import box_size


def group_without(group: Group, omitted: Container[tuple[int, ...]]) -> Group:
    """The group without some of its blocks, by index; their rows count as left out."""
    kept = [step for step in group.steps if step.index not in omitted]
    if len(kept) == len(group.steps):
        return group
    made = _group_of(group, kept)
    return replace(made, n_left_out=group.n_left_out + group.n_rows - made.n_rows)


def first_of(group: Group, chosen: Container[tuple[int, ...]]) -> Group:
    """A group of the first of some blocks; of no block where the group has none of them."""
    steps = [step for step in group.steps if step.index in chosen]
    return _group_of(group, steps[:1])


@without_collections()
def stream_without(stream: Stream, omitted: frozenset[tuple[int, ...]]) -> Stream:
    """The stream without some of its blocks; the cuts between groups stay where they are."""
    if not omitted:
        return stream
    groups = tuple(group_without(group, omitted) for group in stream.groups)
    return replace(stream, groups=groups)


def _group_of(group: Group, steps: Sequence[Step]) -> Group:
    """A group of some of the blocks, which makes what they share with the others, too."""
    if len(steps) == len(group.steps):
        return group
    if isinstance(group.steps[0], AlikeStep):
        n_rows = sum(box_size(step.box) for step in steps)
        return replace(group, steps=tuple(steps), n_rows=n_rows, n_left_out=0)
    graph = {node.key: node for step in group.steps for node, _ in step.nodes}
    blocks = [(step.index, step.box, step.shapes, step.operands) for step in steps]
    return make_group(graph, blocks, {}, group.announced)
