"""The cost of a fit before it runs, as numbers and as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nlsq_dask._errors import in_units
from nlsq_dask.core.memory_budget import GB, MemoryBudget, Strategy
from nlsq_dask.results.plan_text import plan_html, plan_text, where_text
from nlsq_dask.results.tables import plural


@dataclass(frozen=True)
class FitPlan:
    """The cost of a fit before it runs, from :func:`plan`. Prints as a table. Sizes are in bytes.

    Attributes
    ----------
    rows, params : int
        Rows, including rows that will be left out, and parameters that are fitted.
    blocks, groups : int
        Blocks in which the data are read or summed, and tasks of a pass.
    workers, threads : int
        Workers of the cluster (0 without a cluster), and tasks that run in parallel.
    strategy : {"standard", "chunked", "streaming"}
    reason : str
        Why this strategy.
    workflow : str or None
    budget : MemoryBudget
        Memory, in GB, of this process or of the smallest worker.
    data_bytes : int
        All arrays, decoded.
    bytes_per_pass : int
        Bytes that a pass reads: each Zarr chunk counts decoded and whole, each time it is decoded.
        For data in memory, the bytes of the rows.
    bytes_per_later_pass : int
        The same for each pass after the first, when kept rows are in memory.
    kept : float
        Share of streamed rows that stay in memory after the first pass.
    bytes_once : int
        Bytes that are read once, before the first pass, since many tasks need them.
    pilot : bool
        Whether a sample is fitted first.
    pilot_blocks, pilot_rows, pilot_bytes : int
        Blocks that the sample is taken from, most rows of the sample, and bytes read for it. Zero
        without a sample. A model that guesses its own start needs a sample, too.
    passes : pair of int
        Readings of all rows that most fits take, including the sample if it reads all blocks.
    memory_bytes : int
        Most memory that this process, or each worker, takes in addition to data already in it.
    compile_seconds, pass_seconds, later_pass_seconds : float or None
        Time of the compilation, of the first pass, and of a later pass over kept rows. None if
        nothing was timed.
    timed_rows : int
        Rows that were read and summed to find `pass_seconds`.
    n_distinct : int
        Distinct coordinates to whose means the rows are collapsed in one reading; 0 if they are
        not.
    warnings : tuple of str
        Chunks that make the fit slower than necessary, with the call that helps, and a memory limit
        below `memory_bytes`.
    decoded : tuple of str
        Arguments whose stored numbers become other values, each with the attributes that say so.
    devices : tuple of str
        Devices of this process that compute, which take blocks in turn. Empty on a cluster, whose
        workers choose from the devices that they see.
    ways : tuple of str
        How Zarr arrays are read: directly from the files of their chunks, or through Zarr, and why.
    """

    rows: int
    params: int
    blocks: int
    groups: int
    workers: int
    threads: int
    strategy: Strategy
    reason: str
    workflow: str | None
    budget: MemoryBudget
    data_bytes: int
    bytes_per_pass: int
    bytes_per_later_pass: int
    kept: float
    bytes_once: int
    pilot: bool
    pilot_blocks: int
    pilot_rows: int
    pilot_bytes: int
    passes: tuple[int, int]
    memory_bytes: int
    compile_seconds: float | None = None
    pass_seconds: float | None = None
    later_pass_seconds: float | None = None
    timed_rows: int = 0
    n_distinct: int = 0
    warnings: tuple[str, ...] = ()
    decoded: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    ways: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> tuple[int, int]:
        """Bytes that the whole fit reads, for the fewest and the most passes."""
        before = self.bytes_once + self.pilot_bytes + self.bytes_per_pass
        few, many = (before + n * self.bytes_per_later_pass for n in self._later_passes)
        return few, many

    @property
    def total_seconds(self) -> tuple[float, float] | None:
        """Time of all readings, for the fewest and the most passes; None if not timed.

        Reading the sample counts. The fit of the sample, in memory, and the compilation do not.
        """
        if self.pass_seconds is None or self.later_pass_seconds is None:
            return None
        speed = self.pass_seconds / self.bytes_per_pass
        before = speed * (self.bytes_once + self.pilot_bytes) + self.pass_seconds
        few, many = (before + n * self.later_pass_seconds for n in self._later_passes)
        return few, many

    @property
    def _later_passes(self) -> tuple[int, int]:
        """Passes after the first, without the reading of the sample."""
        first = 1 + (self.pilot_blocks == self.blocks)
        few, many = self.passes
        return few - first, many - first

    def __str__(self) -> str:
        return plan_text(_title(self), _table(self), self.warnings)

    def _repr_html_(self) -> str:
        return plan_html(_title(self), _table(self), self.warnings)


def _title(plan: FitPlan) -> str:
    return f"Plan of a fit of {plan.params} parameter{plural(plan.params)} to {plan.rows:,} rows"


def _table(plan: FitPlan) -> list[tuple[str, str]]:
    """Names and texts of the rows of the table, in order."""
    streaming = plan.strategy == "streaming"
    preset = "" if plan.workflow is None else f"; workflow {plan.workflow!r}"
    rows = [
        ("strategy", f"{plan.strategy}: {plan.reason}{preset}"),
        ("data", in_units(plan.data_bytes) + (", decoded" if streaming else " in memory")),
        *(("decoded", line) for line in plan.decoded),
        ("a pass", _pass_text(plan)),
        *(("from Zarr", line) for line in plan.ways),
        ("pilot" if plan.pilot else "start", _first_text(plan)),
        ("passes", _passes_text(plan)),
        ("devices", _devices_text(plan)),
        ("reads", f"{_span(*map(in_units, plan.total_bytes))} in all" if streaming else ""),
        ("memory", _memory_text(plan)),
        ("time", _time_text(plan)),
    ]
    return [(name, text) for name, text in rows if text]


def _pass_text(plan: FitPlan) -> str:
    where = where_text(plan.threads, plan.workers)
    if plan.strategy != "streaming":
        return f"{plan.groups:,} block{plural(plan.groups)} on {where}"
    once = f", and {in_units(plan.bytes_once)} once before" if plan.bytes_once else ""
    text = (
        f"reads {in_units(plan.bytes_per_pass)}{once}: {plan.blocks:,} block{plural(plan.blocks)} "
        f"in {plan.groups:,} task{plural(plan.groups)} on {where}"
    )
    if not plan.kept:
        return text
    rows = "all rows" if plan.kept == 1 else f"{plan.kept:.0%} of the rows"
    later = in_units(plan.bytes_per_later_pass) if plan.bytes_per_later_pass else "nothing"
    return f"{text}; {rows} stay in memory, and later passes read {later}"


def _first_text(plan: FitPlan) -> str:
    if not plan.pilot_rows:
        return ""
    use = "a fit of" if plan.pilot else "a guess from"
    source = f"{plan.blocks:,} blocks ({in_units(plan.pilot_bytes)} read)"
    taken = f" from {plan.pilot_blocks:,} of {source}" if plan.pilot_blocks else ""
    return f"{use} a sample in memory: at most {plan.pilot_rows:,} rows{taken}"


def _passes_text(plan: FitPlan) -> str:
    passes = f"{_span(*map(str, plan.passes))} over all rows"
    if plan.n_distinct:
        means = "the mean at" if plan.n_distinct == 1 else "the means at"
        place = f"{plan.n_distinct:,} distinct coordinate{plural(plan.n_distinct)}"
        return f"{passes}, which collapses them to {means} {place}; all else is in memory"
    if plan.pilot:
        return f"{passes}, as most fits take that start from the answer of a sample"
    return f"{passes}, as most fits take"


def _devices_text(plan: FitPlan) -> str:
    """The devices, unless it is the CPU, whose cores work together."""
    is_usual = len(plan.devices) < 2 and all(name.startswith("cpu") for name in plan.devices)
    return "" if is_usual else ", ".join(plan.devices)


def _memory_text(plan: FitPlan) -> str:
    of, available = f"at most {in_units(plan.memory_bytes)}", plan.budget.available_gb
    if not math.isinf(available):
        of = f"{of} of {in_units(available * GB)}"
    if plan.workers:
        return f"{of} on each worker"
    return f"{of} in this process" + ("" if plan.strategy == "streaming" else ", beside the data")


def _time_text(plan: FitPlan) -> str:
    if plan.total_seconds is None or plan.pass_seconds is None or plan.compile_seconds is None:
        return "not measured; plan(..., time=True) reads a little and measures"
    total = _span(*map(in_time, plan.total_seconds))
    each = in_time(plan.pass_seconds)
    if plan.kept and plan.later_pass_seconds is not None:
        each = f"{each} for the first and {in_time(plan.later_pass_seconds)}"
    sample = " and the fit of the sample" if plan.pilot else ""
    compiling = in_time(plan.compile_seconds)
    return (
        f"about {total} for all passes, {each} each (measured on "
        f"{plan.timed_rows:,} rows); besides {compiling} of compilation{sample}"
    )


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def in_time(seconds: float) -> str:
    """Write a duration with two digits."""
    if seconds < 0.0995:
        return f"{max(seconds * 1e3, 0.1):.2g} ms"
    for limit, unit, name in ((99.5, 1, "s"), (5970, 60, "min"), (171_000, 3600, "hours")):
        if seconds < limit:
            return f"{seconds / unit:.2g} {name}"
    return f"{seconds / 86_400:.2g} days"
