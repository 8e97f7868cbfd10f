"""The sums of each group at the best point of a fit, which passes make anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask.core.influence import steps_without
from nlsq_dask.core.normal_equations import FloatArray, NormalEquations
from nlsq_dask.core.questions import Answers, Several, SumsAt
from nlsq_dask.io.codec import to_json
from nlsq_dask.results.blocks import BlockDiagnostics

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.steps import Group

# Most bytes of the sums of all groups. Larger sums are dropped.
MOST_SUMS_BYTES = 256_000_000


@dataclass(frozen=True)
class GroupSums:
    """The sums of each group at a point.

    Attributes
    ----------
    params : ndarray, shape (p,), float64
    basis : ndarray, shape (p, q), float64
        Directions in which the model was differentiated.
    answers : tuple of NormalEquations
        By number of the group.
    """

    params: FloatArray
    basis: FloatArray
    answers: tuple[NormalEquations, ...]


@dataclass
class BlockSums:
    """Collects the sums of the groups of each pass.

    Attributes
    ----------
    latest : GroupSums or None
        Of the last point that was evaluated.
    best : GroupSums or None
        Of the best point, if it was evaluated in this process.
    """

    latest: GroupSums | None = None
    best: GroupSums | None = field(default=None, init=False)
    _of_y: tuple[NormalEquations, ...] = field(default=(), init=False)

    def see(self, question: Any, answers: Mapping[int, Any], n_groups: int) -> None:
        """Take note of the answers of the groups of a pass."""
        sums = _sums_in(question)
        if sums is None or len(answers) < n_groups or not n_groups:
            return  # of data in memory; or a worker has died with its answers
        ordered = [answers[number] for number in range(n_groups)]
        found = tuple(a.parts[0] if isinstance(a, Answers) else a for a in ordered)
        self.latest = GroupSums(sums.params, sums.basis, found)
        if sums.observe:
            self._of_y = found

    def moved_to(self, params: FloatArray) -> None:
        """Take note of the best point, shape (p,)."""
        if self.latest is not None and np.array_equal(params, self.latest.params):
            self.best = self.latest

    def to_append(self, n_blocks: Sequence[int]) -> dict[str, Any] | None:
        """What a fit of more rows needs, as JSON values; None if it is not known.

        Parameters
        ----------
        n_blocks : sequence of int
            Blocks of each group.
        """
        best = self.best
        if best is None or {len(best.answers), len(self._of_y)} != {len(n_blocks)}:
            return None
        if any(a.n_points != y.n_points for a, y in zip(best.answers, self._of_y, strict=True)):
            return None  # blocks were lost in between
        answers = [
            replace(a, moments=a.moments.with_y_of(y.moments), largest=y.largest, scores=None)
            for a, y in zip(best.answers, self._of_y, strict=True)
        ]
        values = {"sizes": n_blocks, "params": best.params, "basis": best.basis}
        found: dict[str, Any] = to_json(values | {"answers": answers})
        return found


def has_sums(question: Any) -> bool:
    """Whether the answer to a question is the sums at a point, alone or with other answers."""
    return _sums_in(question) is not None


def too_large(question: Any, n_groups: int) -> bool:
    """Whether the sums of so many groups take more memory than is kept."""
    return n_groups * _numbers_in(question) * 8 > MOST_SUMS_BYTES


def _numbers_in(question: Any) -> int:
    """Numbers of the matrices of the sums that a question asks for."""
    if isinstance(question, Several):
        return sum(map(_numbers_in, question.questions))
    return int(question.basis.shape[1]) ** 2 if isinstance(question, SumsAt) else 0


def _sums_in(question: Any) -> SumsAt | None:
    """The sums that a question asks for, alone or first of several."""
    first = question.questions[0] if isinstance(question, Several) else question
    return first if isinstance(first, SumsAt) else None


def diagnostics(
    groups: Sequence[Group],
    sums: GroupSums,
    names: tuple[str, ...],
    errors: FloatArray,
    held: Sequence[bool],
) -> BlockDiagnostics:
    """The table of the blocks.

    Parameters
    ----------
    groups : sequence of Group
    sums : GroupSums
    names : tuple of str
        The parameters.
    errors : ndarray, shape (p,), float64
        Their standard errors.
    held : sequence of bool
        Parameters at a bound, which stay there.
    """
    boxes = [[step.box for step in group.steps] for group in groups]
    n_points = np.array([a.n_points for a in sums.answers], np.int64)
    along = _free_directions(sums.basis, np.array(held, np.bool_))
    grams = np.array([along.T @ a.gram @ along for a in sums.answers])
    gradients = np.array([along.T @ a.gradient for a in sums.answers])
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        moves = steps_without(grams, gradients) @ (sums.basis @ along).T
        shift = np.where(moves == 0.0, 0.0, moves / errors)
        shift[:, ~np.isfinite(errors)] = np.nan
        per_row = np.array([a.chi2 for a in sums.answers]) / n_points
        mean = np.array([a.moments.abs_residuals for a in sums.answers]) / n_points
    shift[:, np.array(held, np.bool_)] = 0.0
    return BlockDiagnostics(
        names=names,
        starts=np.array([_ends(min, "start", own) for own in boxes], np.int64),
        stops=np.array([_ends(max, "stop", own) for own in boxes], np.int64),
        n_chunks=np.array([len(own) for own in boxes], np.int64),
        n_points=n_points,
        n_skipped=np.array([a.n_skipped for a in sums.answers], np.int64),
        chi2_per_row=per_row,
        mean_abs_residual=mean,
        shift=shift,
    )


def _ends(choose: Any, name: str, boxes: Sequence[tuple[slice, ...]]) -> list[int]:
    """The first or the last row of boxes along each dimension."""
    return [choose(getattr(s, name) for s in along) for along in zip(*boxes, strict=True)]


def _free_directions(basis: FloatArray, held: Any) -> FloatArray:
    """Combinations (q, k) of directions (p, q) along which no held parameter moves."""
    q = basis.shape[1]
    if not held.any():
        return np.eye(q)
    _, singular, vectors = np.linalg.svd(basis[held])
    rank = int(np.sum(singular > np.finfo(np.float64).eps * q * singular.max(initial=0.0)))
    free: FloatArray = vectors[rank:].T
    return free
