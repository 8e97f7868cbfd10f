"""Data with rows to leave out, in every way there is to say so, and the rows that remain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
from hypothesis import strategies as st

from nlsq_dask.io.sources import Observations, observe
from tests.support.problems import SIZES, Problem, broadcasting_shapes, problems, random_chunks


@dataclass(frozen=True)
class Gappy:
    """A problem as it is passed, and which of its rows remain."""

    problem: Problem
    options: dict[str, Any]
    keep: np.ndarray

    @property
    def n_skipped(self) -> int:
        return int(self.keep.size - self.keep.sum())

    @property
    def remaining(self) -> Problem:
        """The rows that remain, flat."""
        whole = self.problem

        def pick(array: Any) -> Any:
            return np.broadcast_to(np.ma.getdata(array), self.keep.shape)[self.keep]

        if isinstance(whole.x, tuple):
            x: Any = tuple(map(pick, whole.x))
        elif whole.x.ndim == whole.y.ndim + 1:
            x = np.stack([pick(c) for c in whole.x])
        else:
            x = pick(whole.x)
        sigma = None if whole.sigma is None else pick(whole.sigma)
        return replace(whole, x=x, y=pick(whole.y), sigma=sigma)

    def in_memory(self) -> Observations:
        return observe(self.problem.x, self.problem.y, self.problem.sigma, **self.options)

    def in_dask(self, layout: int) -> Observations:
        """Dask arrays of unrelated chunkings; some arrays stay in memory."""
        rng = np.random.default_rng(layout)

        def wrap(array: Any, always: bool = False) -> Any:
            if not isinstance(array, np.ndarray) or (rng.random() < 0.2 and not always):
                return array
            return da.from_array(array, chunks=random_chunks(rng, array.shape))

        x = self.problem.x
        coords = tuple(map(wrap, x)) if isinstance(x, tuple) else wrap(x)
        options = {name: wrap(value) for name, value in self.options.items()}
        return observe(coords, wrap(self.problem.y, True), wrap(self.problem.sigma), **options)


@st.composite
def gappy_problems(draw: st.DrawFn, sizes: tuple[int, ...] = SIZES) -> Gappy:
    """Masks, masked arrays, NaN and fill values, one or several together, rare or common."""
    problem = draw(problems(sizes=sizes))
    shape = problem.y.shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.0, 0.02, 0.5, 0.98]))
    left_out = np.zeros(shape, bool)
    options: dict[str, Any] = {}

    def note(flags: Any) -> None:
        np.logical_or(left_out, flags, out=left_out)

    def riddled(array: Any, stacked: bool = False) -> Any:
        """The same array, masked or with NaN, or as it is."""
        way = draw(st.sampled_from(["none", "masked", "NaN"]))
        if way == "none" or not isinstance(array, np.ndarray):
            return array
        flags = rng.random(array.shape) < share
        array = array.copy()
        if array.dtype.kind == "f":
            array[flags] = np.nan
        if way == "masked":
            # NumPy's own fill value, 1e20, warns where float16 is sent to a cluster.
            mask = flags if flags.any() else np.ma.nomask
            array = np.ma.MaskedArray(array, mask, fill_value=0)
        elif array.dtype.kind == "f":
            options["nan_policy"] = "omit"
        else:
            return array
        note(flags.any(axis=0) if stacked else flags)
        return array

    y = problem.y
    if draw(st.booleans()):
        options["fill_value"] = y.ravel()[rng.integers(y.size)].item()
        note(y == options["fill_value"])
    if draw(st.booleans()):
        options["mask"] = rng.random(draw(broadcasting_shapes(shape))) < share
        note(options["mask"])
    y = riddled(y)
    if isinstance(problem.x, tuple):
        x: Any = tuple(map(riddled, problem.x))
    else:
        x = riddled(problem.x, stacked=problem.x.ndim == len(shape) + 1)
    sigma = riddled(problem.sigma)
    return Gappy(replace(problem, x=x, y=y, sigma=sigma), options, ~left_out)
