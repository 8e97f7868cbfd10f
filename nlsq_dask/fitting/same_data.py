"""Whether all passes of a fit see the same data, also after the fit is resumed.

The sums of two passes over different data have no common minimum: a file is still being written, an
array upstream is random, a checkpoint is of other data of the same shape. Every pass tells how many
rows it summed and left out, and the sums of a few values of each array. The first pass, and the
first after a checkpoint, also tell the moments of y. A finished search makes no pass; the checksums
of a few blocks are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray, Moments, NormalEquations
from nlsq_dask.core.questions import Answers, FoundT, RowQuestion, Search, SumsAt, relayed
from nlsq_dask.core.solver_state import SolverState
from nlsq_dask.engines.collapsed import CollapsedEngine
from nlsq_dask.engines.in_memory import InMemoryEngine
from nlsq_dask.fitting.job import Job
from nlsq_dask.io.chunks import spread_blocks
from nlsq_dask.questions.digest import Digest, rows_of

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEngine

# Sums that are not finite, in a row, after which the data are searched for NaN and infinities. A
# model that overflows far from the optimum makes one or two.
MOST_NOT_FINITE = 3

# Largest relative difference between sums of the same values. Machines of one kind give the same
# bits. Other kinds may add in another order.
MOST_APART = 1e-10

# Blocks with checksums that are compared: so many, or one for GROUPS_A_BLOCK groups if these are
# fewer.
COMPARED_BLOCKS = 3
GROUPS_A_BLOCK = 8

# Whether a part of the answer to a question is known already.
Knows = Callable[[RowQuestion[Any]], bool]

# Looks for values that are not finite, in a pass; None if there are none.
Look = Callable[[], _errors.InputError | None]


def nothing_known(question: RowQuestion[Any]) -> bool:  # noqa: ARG001 (of Knows)
    """Nothing is known before it is asked."""
    return False


def same_in_all_passes(
    search: Search[FoundT],
    look: Look | None,
    before: SolverState | None,
    knows: Knows = nothing_known,
    columns: Sequence[str] = (),
) -> Search[FoundT]:
    """Compare what the answers to a search's questions tell of the data.

    Parameters
    ----------
    search : Search
        Asks for the moments of y in its first pass.
    look : callable or None
        Looks for values that are not finite in data that may change between passes.
    before : SolverState or None
        State that the search goes on from.
    knows : callable
        Whether a part of the answer to a question is known already. It has no moments that an
        uninterrupted search would not ask for.
    columns : sequence of str
        Names of the coordinates, and of sigma if there is one.

    Raises
    ------
    DataChangedError
        If a pass sees other data than another.
    """
    passes = _Passes(look, before, knows, columns)
    return relayed(search, change=passes.change, see=passes.see, lose=passes.forget)


class _Passes:
    """What the passes of a search saw."""

    def __init__(
        self,
        look: Look | None,
        before: SolverState | None,
        knows: Knows,
        columns: Sequence[str],
    ) -> None:
        self._look = look
        self._knows = knows
        self._names = columns
        self._resumed = before is not None
        self._ask_moments = before is not None
        self._counts = None if before is None else (before.n_points, before.n_skipped)
        self._moments = None if before is None else before.moments
        self._sample: float | None = None
        self._columns: FloatArray | None = None
        self._not_finite = 0

    def change(self, question: RowQuestion[Any]) -> RowQuestion[Any]:
        """Ask for the moments in the first pass after a checkpoint, which changes no other sum."""
        if self._ask_moments and isinstance(question, SumsAt) and not self._knows(question):
            self._ask_moments = False
            return replace(question, observe=True)
        return question

    def forget(self) -> None:
        """Compare from now on with the next sums: rows were left out."""
        self._counts, self._moments, self._sample, self._columns = None, None, None, None
        self._resumed = self._ask_moments = False

    def see(self, answer: Any) -> None:
        """Compare an answer with the answers before."""
        for sums in answer if isinstance(answer, Answers) else (answer,):
            if isinstance(sums, NormalEquations):
                self._see(sums)

    def _see(self, sums: NormalEquations) -> None:
        counts = (sums.n_points, sums.n_skipped)
        if self._counts is None:
            self._counts = counts
        elif counts != self._counts:
            raise _errors.data_changed_rows(self._counts, counts, resumed=self._resumed)
        if sums.largest is not None:  # the moments of y were asked for
            if self._moments is None:
                self._moments = sums.moments
            elif (name := _differing(self._moments, sums.moments)) is not None:
                first, now = getattr(self._moments, name), getattr(sums.moments, name)
                raise _errors.data_changed_values(name, first, now, resumed=self._resumed)
        self._compare_samples(sums)
        self._compare_columns(sums.sample_of_columns)
        self._not_finite = 0 if math.isfinite(sums.cost) else self._not_finite + 1
        if self._not_finite == MOST_NOT_FINITE and self._look is not None:
            look, self._look = self._look, None  # once is enough
            if (found := look()) is not None:
                raise _errors.data_changed_to(found)

    def _compare_samples(self, sums: NormalEquations) -> None:
        """Compare the sum of a few values of y with that of the first pass."""
        first, now = self._sample, sums.sample_of_y
        if first is None or self._moments is None:
            self._sample = now
            return
        size = sums.n_points * _size(self._moments)
        if math.isfinite(size) and math.isfinite(now) and abs(now - first) > MOST_APART * size:
            raise _errors.data_changed_values("sample", first, now, resumed=self._resumed)

    def _compare_columns(self, now: FloatArray | None) -> None:
        """Compare the sums of a few values of each coordinate, and of sigma, with those before."""
        if self._columns is None or now is None:
            self._columns = now
            return
        pairs = zip(self._names, self._columns.tolist(), now.tolist(), strict=False)
        for name, first, own in pairs:
            known = math.isfinite(first) and math.isfinite(own)
            if known and abs(own - first) > MOST_APART * first:
                raise _errors.data_changed_column(name, first, own)


def _size(moments: Moments) -> float:
    """A bound of the typical size of y."""
    spread = moments.scatter / moments.weight if moments.weight else 0.0
    return abs(moments.mean) + math.sqrt(spread)


def _differing(first: Moments, now: Moments) -> str | None:
    """The first moment of y that differs by more than rounding; None if the data are the same."""
    sizes = {
        "weight": first.weight,
        "mean": _size(first),
        "scatter": first.scatter + first.weight * first.mean * first.mean,  # ** would raise
    }
    for name, size in sizes.items():
        difference = abs(getattr(now, name) - getattr(first, name))
        if math.isfinite(size) and not difference <= MOST_APART * size:
            return name
    return None


def digests(job: Job, engine: InMemoryEngine | DaskEngine | CollapsedEngine) -> dict[str, str]:
    """Checksums of a few blocks by their rows, spread over the data."""
    if isinstance(engine, CollapsedEngine):
        engine = engine.rows
    if isinstance(engine, InMemoryEngine):
        pieces = list(job.data.pieces())  # views
        chosen = [pieces[i] for i in spread_blocks([len(pieces)], COMPARED_BLOCKS)]
        of_blocks = Digest().zero()
        for box, block in chosen:
            of_blocks += Digest().of_block((None, box, block), engine.kernels)
    else:
        count = max(1, min(COMPARED_BLOCKS, len(engine.stream.groups) // GROUPS_A_BLOCK))
        of_blocks = engine.ask_few(Digest(), count)
    return dict(of_blocks.of_blocks)


def check_old_digests(path: object, saved: dict[str, str], engine: DaskEngine) -> None:
    """Refuse data to which rows were appended, if old rows differ.

    Compares the blocks that have a checksum and are still the first of a group.

    Raises
    ------
    DataChangedError
        If the checksum of a block differs; the message names its rows.
    """
    firsts = [(group, rows_of(group.steps[0].box)) for group in engine.stream.groups]
    chosen = [group for group, rows in firsts if rows in saved]
    now = dict(engine.ask_first(Digest(), chosen).of_blocks) if chosen else {}
    differing = [rows for rows in now if saved[rows] != now[rows]]
    if differing:
        raise _errors.checkpoint_of_other_data(path, differing, len(now))


def check_digests(
    path: object,
    saved: dict[str, str],
    job: Job,
    engine: InMemoryEngine | DaskEngine | CollapsedEngine,
) -> None:
    """Refuse a finished checkpoint whose data differ.

    Raises
    ------
    DataChangedError
        If the checksum of a block differs; the message names its rows.
    """
    now = digests(job, engine)
    differing = [rows for rows in saved if now.get(rows) != saved[rows]]
    if differing:
        raise _errors.checkpoint_of_other_data(path, differing, len(saved))
