"""Fits of the same data in many units and with many offsets.

A case is one combination of a model, the units of x and y, offsets of both, a method, a tier, a
workflow, bounds and a start. Its data are those of natural units, multiplied and shifted in exact
arithmetic and rounded once. Unit and offset are taken out of the rounded data exactly, too, so that
the oracle (:mod:`tests.support.unit_oracle`) knows neither; answers are compared in natural units.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import dask
import dask.array as da
import numpy as np

from nlsq_dask import FitResult, fit
from tests.support.unit_oracle import Natural
from tests.support.unit_shapes import RANGE, SHAPES, FloatArray, Shape, signal

CHUNK_ROWS = 50
POWERS = (-18, -12, -6, 0, 6, 12, 18)
#: Of y in heights of the signal (1), of x in ranges (10).
OFFSETS = (0, 10**3, 10**6, 10**9)
METHODS = ("trf", "lm", "dogbox")
#: Those that a tier can run; None is no workflow, with the default tolerances.
WORKFLOWS = {
    "standard": (None, "auto", "standard", "quality", "fast", "large_robust"),
    "streaming": (None, "auto", "streaming", "hpc_distributed"),
}
BOUNDS = ("none", "active", "positive")
#: "zero" is "near" with a constant of 0 in the data's units.
STARTS = ("near", "far", "zero")


@dataclass(frozen=True)
class Case:
    """One fit of the sweep: powers of ten of the units, multiples of the signal as offsets."""

    shape: str
    x_power: int
    y_power: int
    x_offset: int
    y_offset: int
    method: str
    tier: str
    workflow: str | None
    bounds: str
    start: str
    seed: int = 0

    def pairs(self) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
        """Every two of its levels."""
        levels = [level for level in vars(self).items() if level[0] != "seed"]
        return itertools.combinations(levels, 2)


def design(count: int, seed: int = 0) -> list[Case]:
    """Draw cases at random, of several each time the one with most pairs of levels not seen yet."""
    rng = np.random.default_rng(seed)
    seen: set[Any] = set()
    cases = []
    for number in range(count):
        drawn = [_drawn(rng, number % 5) for _ in range(6)]
        best = max(drawn, key=lambda case: len(set(case.pairs()) - seen))
        seen.update(best.pairs())
        cases.append(best)
    return cases


def _drawn(rng: np.random.Generator, seed: int) -> Case:
    """A case whose levels go together."""

    def one_of(levels: Sequence[Any]) -> Any:
        return levels[rng.integers(len(levels))]

    name, method, tier = one_of(tuple(SHAPES)), one_of(METHODS), one_of(tuple(WORKFLOWS))
    shape = SHAPES[name]
    return Case(
        name,
        one_of(POWERS),
        one_of(POWERS),
        one_of(OFFSETS) if shape.shifts_x else 0,
        one_of(OFFSETS) if shape.constant is not None else 0,
        method,
        tier,
        one_of(WORKFLOWS[tier]),
        "none" if method == "lm" else one_of(BOUNDS),
        one_of(STARTS if shape.constant is not None else STARTS[:2]),
        seed,
    )


@dataclass(frozen=True)
class Task:
    """A case made of numbers: what ``fit`` gets, and the same in natural units.

    Attributes
    ----------
    case : Case
    x, y : ndarray, shape (ROWS,), float64
        In the data's units.
    p0, lower, upper : ndarray, shape (p,), float64
        In the data's units.
    natural : Natural
        The same, seen by the oracle.
    """

    case: Case
    x: FloatArray
    y: FloatArray
    p0: FloatArray
    lower: FloatArray
    upper: FloatArray
    natural: Natural = field(repr=False)

    @classmethod
    def of(cls, case: Case) -> Task:
        """Make the numbers."""
        shape, scaling = SHAPES[case.shape], Scaling.of(case)
        t, values = signal(case.shape, case.seed)
        x = scaling.measured(t, scaling.x_unit, scaling.x_offset)
        y = scaling.measured(values, scaling.y_unit, scaling.y_offset)
        lower, upper = _bounds(shape, case.bounds)
        start = np.array(shape.far if case.start == "far" else shape.near)
        p0 = scaling.params(start if case.bounds != "active" else np.minimum(start, 0.9 * upper))
        if case.start == "zero" and shape.constant is not None:
            p0[shape.constant] = 0.0
        bounds = [scaling.bounds(side) for side in (lower, upper)]
        if case.bounds == "positive":
            bounds[0][list(shape.positive)] = 0.0
        natural = Natural(
            case.shape,
            scaling.natural_values(x, scaling.x_unit, scaling.x_offset),
            scaling.natural_values(y, scaling.y_unit, scaling.y_offset),
            scaling.natural_params(p0),
            *(scaling.natural_bounds(side) for side in bounds),
        )
        return cls(case, x, y, p0, *bounds, natural)

    def natural_params(self, params: FloatArray) -> FloatArray:
        """Parameters of a fit in natural units."""
        return Scaling.of(self.case).natural_params(params)

    def run(self) -> FitResult:
        """Fit it."""
        case = self.case
        options: dict[str, Any] = {"method": case.method, "workflow": case.workflow}
        if case.bounds != "none":
            options["bounds"] = (self.lower, self.upper)
        data: tuple[Any, Any] = (self.x, self.y)
        if case.tier == "streaming":
            data = (da.from_array(self.x, chunks=CHUNK_ROWS), da.from_array(self.y, CHUNK_ROWS))
        # A workflow may write checkpoints to the current directory.
        with contextlib.ExitStack() as stack:
            stack.enter_context(dask.config.set(scheduler="synchronous"))
            if case.workflow == "hpc_distributed":
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                stack.enter_context(contextlib.chdir(folder))
            return fit(SHAPES[case.shape].function, *data, self.p0, progress=False, **options)


@dataclass(frozen=True)
class Scaling:
    """The way from natural units to the data's and back, in exact arithmetic."""

    shape: Shape
    x_unit: Fraction
    y_unit: Fraction
    x_offset: int
    y_offset: int

    @classmethod
    def of(cls, case: Case) -> Scaling:
        return cls(
            SHAPES[case.shape],
            Fraction(10) ** case.x_power,
            Fraction(10) ** case.y_power,
            case.x_offset * RANGE,
            case.y_offset,
        )

    @property
    def units(self) -> list[Fraction]:
        """Unit of each parameter."""
        return [self.y_unit**of_y * self.x_unit**of_x for of_y, of_x in self.shape.powers]

    def measured(self, values: FloatArray, unit: Fraction, offset: int) -> FloatArray:
        """Values in the data's units, rounded to float64."""
        return np.array([float((Fraction(v) + offset) * unit) for v in values.tolist()])

    def natural_values(self, values: FloatArray, unit: Fraction, offset: int) -> FloatArray:
        """The values of which :meth:`measured` would make these without rounding."""
        return np.array([float(Fraction(v) / unit - offset) for v in values.tolist()])

    def params(self, natural: FloatArray) -> FloatArray:
        """Parameters in the data's units."""
        exact = [Fraction(v) for v in natural.tolist()]
        moved = self.shape.shifted(exact, self.x_offset, self.y_offset)
        return np.array([float(v * u) for v, u in zip(moved, self.units, strict=True)])

    def natural_params(self, params: FloatArray) -> FloatArray:
        """Parameters in natural units, without the offsets."""
        exact = [Fraction(v) / u for v, u in zip(params.tolist(), self.units, strict=True)]
        back = self.shape.shifted(exact, -self.x_offset, -self.y_offset)
        return np.array([float(v) for v in back])

    def bounds(self, natural: FloatArray) -> FloatArray:
        """One side of the bounds in the data's units, infinite for parameters that move."""
        scales = np.array([float(u) for u in self.units])
        return natural * scales

    def natural_bounds(self, bounds: FloatArray) -> FloatArray:
        """One side of the bounds in natural units."""
        finite = self.natural_params(np.where(np.isfinite(bounds), bounds, 0.0))
        return np.where(np.isfinite(bounds), finite, bounds)


def _bounds(shape: Shape, kind: str) -> tuple[FloatArray, FloatArray]:
    """Lower and upper bounds in natural units, but for those "from 0"."""
    lower, upper = np.full((2, len(shape.truth)), np.inf) * [[-1], [1]]
    if kind == "active":
        for i in shape.positive:
            if i not in (shape.constant, shape.location):
                lower[i], upper[i] = 0.1 * shape.truth[i], 10 * shape.truth[i]
        for i, bound in shape.bounded:
            upper[i] = bound
    return lower, upper
