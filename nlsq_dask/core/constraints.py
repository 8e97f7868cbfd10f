"""Fixed and tied parameters: a fit of fewer, free coordinates.

The parameters of the model are ``θ = offset + T φ`` with the free coordinates φ (q,) and a matrix T
(p, q). As the kernel differentiates along the columns of a basis, a pass for φ is a pass along the
columns of ``T S``: what is fixed is never differentiated, and what is tied costs nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlsq_dask import _errors
from nlsq_dask.core.bounds import normalize_p0
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.questions import CostsAt, FoundT, RowQuestion, Search, SumsAt, relayed

#: Key of the constant of a tie.
CONSTANT = 1


@dataclass(frozen=True, slots=True)
class Reduction:
    """How all parameters follow from the free coordinates.

    Attributes
    ----------
    matrix : ndarray, shape (p, q), float64
        T.
    offset : ndarray, shape (p,), float64
        Values of fixed parameters, and constants of ties; 0 elsewhere.
    names : tuple of str, length q
        Names of the free coordinates.
    leaders : tuple of int, length q, or None
        The parameter that each free coordinate is; None where a matrix of ties was given.
    """

    matrix: FloatArray
    offset: FloatArray
    names: tuple[str, ...]
    leaders: tuple[int, ...] | None

    @property
    def is_identity(self) -> bool:
        """Whether every parameter is free."""
        return self.leaders == tuple(range(len(self.offset)))

    @property
    def is_fixed(self) -> NDArray[np.bool_]:
        """Which parameters (p,) do not depend on any free coordinate."""
        if self.is_identity:
            return np.zeros(len(self.offset), bool)
        return np.asarray(~np.any(self.matrix, axis=1))

    def expand(self, free: FloatArray) -> FloatArray:
        """Parameters (..., p) of free coordinates (..., q)."""
        if self.is_identity:
            return free
        return self.offset + free @ self.matrix.T

    def expand_covariance(self, pcov: FloatArray) -> FloatArray:
        """Covariance (p, p) of all parameters; rows of fixed ones are zero."""
        if self.is_identity:
            return pcov
        if np.isfinite(pcov).all():
            return self.matrix @ pcov @ self.matrix.T
        free = ~self.is_fixed
        return np.where(free[:, None] & free, np.inf, 0.0)

    def expand_gradient(self, gradient: FloatArray) -> FloatArray:
        """Gradient (p,) by all parameters: the shortest with the given gradient along T."""
        if self.is_identity:
            return gradient
        return np.linalg.pinv(self.matrix).T @ gradient

    def expand_bounds(self, lower: FloatArray, upper: FloatArray) -> FloatArray:
        """Bounds (p, 2) of all parameters, from the bounds of the free coordinates (q,).

        Infinite for parameters that are fixed or a combination of several free coordinates.
        """
        if self.is_identity:
            return np.array([lower, upper]).T
        ends = np.tile([-np.inf, np.inf], (len(self.offset), 1))
        for i in np.flatnonzero(np.count_nonzero(self.matrix, axis=1) == 1):
            column = int(np.flatnonzero(self.matrix[i])[0])
            pair = np.array([lower[column], upper[column]])
            ends[i] = np.sort(self.offset[i] + self.matrix[i, column] * pair)
        return ends

    def expand_mask(self, active: NDArray[np.int64]) -> NDArray[np.int64]:
        """Active bounds (p,); 0 for parameters of several free coordinates."""
        if self.is_identity:
            return active
        single = np.count_nonzero(self.matrix, axis=1) == 1
        signs = np.sign(self.matrix) @ active
        return np.where(single, signs, 0).astype(np.int64)


def in_free(search: Search[FoundT], reduction: Reduction) -> Search[FoundT]:
    """Translate the questions of a search in free coordinates to the model's parameters.

    Parameters
    ----------
    search : Search
        Of φ (q,).
    reduction : Reduction
    """
    if reduction.is_identity:
        return search

    def of_all(question: SumsAt | CostsAt) -> RowQuestion[Any]:
        if isinstance(question, CostsAt):
            return replace(question, candidates=reduction.expand(question.candidates))
        along = reduction.matrix @ question.basis
        return replace(question, params=reduction.expand(question.params), basis=along)

    return relayed(search, change=of_all)


def reduce_parameters(
    names: Sequence[str], fixed: Mapping[str, float] | None, ties: Any = None
) -> Reduction:
    """Find the free coordinates of a fit.

    Parameters
    ----------
    names : sequence of str, length p
    fixed : dict or None
        Values of fixed parameters by name.
    ties : dict, array_like of shape (p, q), or None
        ``{"a2": "a1"}`` for equal parameters, ``{"a2": {"a1": 2.0, "b": -1.0}}`` for a linear
        combination, to which ``1: 0.5`` adds a constant, or the matrix T itself.

    Raises
    ------
    InputError, InputTypeError
        If a name is unknown, a value is not finite, a parameter is fixed and tied, ties run in a
        circle, or no parameter is free.
    """
    values = _fixed_values(names, fixed)
    if ties is not None and not isinstance(ties, Mapping):
        return _from_matrix(names, values, ties)
    combinations = _combinations(names, values, ties or {})
    leaders = tuple(i for i, n in enumerate(names) if n not in values and n not in combinations)
    if not leaders:
        raise _errors.nothing_free(names)
    matrix, offset = np.zeros((len(names), len(leaders))), np.zeros(len(names))
    matrix[list(leaders), range(len(leaders))] = 1.0
    place: dict[str | int, int] = {name: i for i, name in enumerate(names)}
    for name, value in values.items():
        offset[place[name]] = value
    for name in _in_order(combinations):
        for other, factor in combinations[name].items():
            if other == CONSTANT:
                offset[place[name]] += factor
                continue
            matrix[place[name]] += factor * matrix[place[other]]
            offset[place[name]] += factor * offset[place[other]]
    return Reduction(matrix, offset, tuple(names[i] for i in leaders), leaders)


def reduce_bounds(
    reduction: Reduction, names: Sequence[str], lower: FloatArray, upper: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Bounds (q,) of the free coordinates, from the bounds of the parameters (p,).

    Raises
    ------
    InputError
        If a fixed value lies outside of its bounds, a parameter that is a combination of several
        has bounds, or the bounds of tied parameters exclude each other.
    """
    if reduction.is_identity:
        return lower, upper
    size = len(reduction.names)
    low, high = np.full(size, -np.inf), np.full(size, np.inf)
    for i, name in enumerate(names):
        if lower[i] == -np.inf and upper[i] == np.inf:
            continue
        (columns,) = np.nonzero(reduction.matrix[i])
        offset = reduction.offset[i]
        if columns.size == 0:
            if not lower[i] <= offset <= upper[i]:
                raise _errors.fixed_outside_bounds(
                    name, float(offset), float(lower[i]), float(upper[i])
                )
            continue
        if columns.size > 1:
            raise _errors.bounds_on_combination(name)
        factor = reduction.matrix[i, columns[0]]
        ends = sorted(((lower[i] - offset) / factor, (upper[i] - offset) / factor))
        low[columns[0]] = max(low[columns[0]], ends[0])
        high[columns[0]] = min(high[columns[0]], ends[1])
    for name, a, b in zip(reduction.names, low.tolist(), high.tolist(), strict=True):
        if not a < b:
            raise _errors.bounds_crossed(name, a, b)
    return low, high


def reduce_start(
    reduction: Reduction,
    p0: Any,
    names: Sequence[str],
    lower: FloatArray,
    upper: FloatArray,
) -> FloatArray:
    """Starting values (q,) of the free coordinates.

    Parameters
    ----------
    reduction : Reduction
    p0 : None, sequence of length p, or mapping
        As for :func:`~nlsq_dask.core.bounds.normalize_p0`. Values of fixed and tied parameters have
        no effect. A mapping may omit them.
    names : sequence of str, length p
    lower, upper : ndarray, shape (q,), float64
        Bounds of the free coordinates.

    Raises
    ------
    InputError, InputTypeError
        As :func:`~nlsq_dask.core.bounds.normalize_p0`.
    """
    if reduction.is_identity:
        return normalize_p0(p0, names, lower, upper)
    if isinstance(p0, Mapping):
        _check_names("p0", p0, names)
        if reduction.leaders is not None:
            given = {name: p0[name] for name in reduction.names if name in p0}
            return normalize_p0(given, reduction.names, lower, upper)
    elif p0 is None and reduction.leaders is not None:
        return normalize_p0(None, reduction.names, lower, upper)
    unbounded = np.full(len(names), np.inf)
    start = normalize_p0(p0, names, -unbounded, unbounded)
    if reduction.leaders is not None:
        return normalize_p0(start[list(reduction.leaders)], reduction.names, lower, upper)
    free = np.linalg.lstsq(reduction.matrix, start - reduction.offset)[0]
    return normalize_p0(free, reduction.names, lower, upper)


def _fixed_values(names: Sequence[str], fixed: Mapping[str, float] | None) -> dict[str, float]:
    if fixed is None:
        return {}
    if not isinstance(fixed, Mapping):
        raise _errors.fixed_form(fixed)
    _check_names("fixed", fixed, names)
    values = {}
    for name, value in fixed.items():
        try:
            values[name] = float(value)
        except (TypeError, ValueError, OverflowError):
            raise _errors.fixed_value(name, value) from None
        if not np.isfinite(values[name]):
            raise _errors.fixed_value(name, value)
    return values


def _combinations(
    names: Sequence[str], fixed: Mapping[str, float], ties: Mapping[str, Any]
) -> dict[str, dict[str | int, float]]:
    """Ties in one form: for each tied parameter the factors of other parameters, and a constant."""
    _check_names("ties", ties, names)
    both = [name for name in ties if name in fixed]
    if both:
        raise _errors.fixed_and_tied(both)
    combinations: dict[str, dict[str | int, float]] = {}
    for name, tie in ties.items():
        factors = {tie: 1.0} if isinstance(tie, str) else tie
        if not isinstance(factors, Mapping):
            raise _errors.tie_form(name, tie)
        others = {n: factor for n, factor in factors.items() if n != CONSTANT}
        _check_names(f"ties[{name!r}]", others, names)
        try:
            combinations[name] = {other: float(factor) for other, factor in factors.items()}
        except (TypeError, ValueError, OverflowError):
            raise _errors.tie_form(name, tie) from None
        if not np.isfinite(list(combinations[name].values())).all():
            raise _errors.tie_form(name, tie)
    return combinations


def _in_order(combinations: Mapping[str, Mapping[str | int, float]]) -> list[str]:
    """Tied parameters, each after the parameters that it is tied to."""
    order: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise _errors.ties_in_a_circle((*path[path.index(name) :], name))
        for other in combinations[name]:
            if isinstance(other, str) and other in combinations and other not in order:
                visit(other, (*path, name))
        order[name] = None

    for name in combinations:
        if name not in order:
            visit(name, ())
    return list(order)


def _from_matrix(names: Sequence[str], fixed: Mapping[str, float], ties: Any) -> Reduction:
    if fixed:
        raise _errors.fixed_with_matrix()
    try:
        given = np.asarray(ties)
        matrix = np.asarray(given.real, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise _errors.ties_matrix(type(ties).__name__, len(names)) from None
    if np.iscomplexobj(given):
        raise _errors.ties_matrix("complex values", len(names))
    if matrix.ndim != 2 or len(matrix) != len(names) or not np.isfinite(matrix).all():
        raise _errors.ties_matrix(f"shape {matrix.shape}", len(names))
    size = matrix.shape[1]
    rank = int(np.linalg.matrix_rank(matrix)) if size else 0
    if size == 0 or rank < size:
        raise _errors.ties_matrix(f"shape {matrix.shape} and rank {rank}", len(names))
    free = tuple(f"free{i}" for i in range(size))
    return Reduction(matrix, np.zeros(len(names)), free, None)


def _check_names(argument: str, given: Mapping[str, Any], names: Sequence[str]) -> None:
    unknown = [str(name) for name in given if name not in names]
    if unknown:
        raise _errors.unknown_parameter_names(argument, unknown, names)
