"""The cost of many fits before they run, as numbers and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nlsq_dask._errors import in_units
from nlsq_dask.results.plan_text import plan_html, plan_text, where_text
from nlsq_dask.results.tables import plural


@dataclass(frozen=True, kw_only=True)
class MapsPlan:
    """The cost of many fits before they run, from :func:`plan_each`. Sizes are in bytes.

    Prints as a table.

    Attributes
    ----------
    series, rows, params : int
        Series, rows of a series, and parameters that are fitted to each.
    strategy : {"standard", "streaming", "frames"}
        How the data are read: in memory, in tasks that read whole series, or in tasks that add up
        sums over frames.
    blocks : int
        Blocks of the map, a task each.
    joined : int
        Chunks of ``y`` that a block joins along the fitted axes.
    block_series, block_bytes : int
        Series of the largest block, and its decoded bytes, of all arrays.
    workers, threads : int
        Workers of the cluster (0 without a cluster), and tasks that run in parallel.
    data_bytes : int
        All arrays, decoded.
    readings : int
        Readings of all data. Frames are read about as often.
    bytes_read : int
        Bytes of all readings: each Zarr chunk counts decoded and whole, each time it is decoded. 0
        for data in memory.
    bytes_of_maps : int
        All maps of the answer.
    stored : bool
        Whether the maps are written to a store.
    memory_bytes : int
        Most memory that this process, or each worker, takes in addition to data already in it.
    available_bytes : int
        Memory of this process, or of the smallest worker.
    warnings : tuple of str
        Chunks that make the fits slower than necessary, or that do not fit in memory, with the call
        that helps.
    decoded : tuple of str
        Arguments whose stored numbers become other values, each with the attributes that say so.
    """

    series: int
    rows: int
    params: int
    strategy: Literal["standard", "streaming", "frames"]
    blocks: int
    joined: int
    block_series: int
    block_bytes: int
    workers: int
    threads: int
    data_bytes: int
    readings: int
    bytes_read: int
    bytes_of_maps: int
    stored: bool
    memory_bytes: int
    available_bytes: int
    warnings: tuple[str, ...] = ()
    decoded: tuple[str, ...] = ()

    def __str__(self) -> str:
        return plan_text(_title(self), _table(self), self.warnings)

    def _repr_html_(self) -> str:
        return plan_html(_title(self), _table(self), self.warnings)


def _title(plan: MapsPlan) -> str:
    of = f"{plan.params} parameter{plural(plan.params)}"
    rows = f"{plan.rows:,} row{plural(plan.rows)}"
    return f"Plan of {plan.series:,} fit{plural(plan.series)} of {of} to series of {rows}"


def _table(plan: MapsPlan) -> list[tuple[str, str]]:
    """Names and texts of the rows of the table, in order."""
    streaming = plan.strategy != "standard"
    return [
        ("strategy", _strategy_text(plan)),
        ("data", in_units(plan.data_bytes) + (", decoded" if streaming else " in memory")),
        *(("decoded", line) for line in plan.decoded),
        ("a block", f"{plan.block_series:,} series, {in_units(plan.block_bytes)}"),
        ("runs", _tasks_text(plan)),
        *([("reads", _reading_text(plan))] if streaming else []),
        ("maps", in_units(plan.bytes_of_maps) + (", written as they come" if plan.stored else "")),
        ("memory", _memory_text(plan)),
    ]


def _strategy_text(plan: MapsPlan) -> str:
    if plan.strategy == "standard":
        return "standard: all series are in memory"
    if plan.strategy == "frames":
        return "frames: sums of each series are added up over the frames, a few rows at a time"
    if plan.joined == 1:
        return "streaming: each chunk holds whole series"
    return f"streaming: each block joins {plan.joined:,} chunks to whole series"


def _tasks_text(plan: MapsPlan) -> str:
    where = where_text(plan.threads, plan.workers)
    return f"{plan.blocks:,} block{plural(plan.blocks)} on {where}"


def _reading_text(plan: MapsPlan) -> str:
    count = "one reading" if plan.readings == 1 else f"about {plan.readings} readings"
    return f"{in_units(plan.bytes_read)} in {count} of all data"


def _memory_text(plan: MapsPlan) -> str:
    of = f"at most {in_units(plan.memory_bytes)} of {in_units(plan.available_bytes)}"
    where = " on each worker" if plan.workers else " in this process"
    return of + where + (", beside the data" if plan.strategy == "standard" else "")
