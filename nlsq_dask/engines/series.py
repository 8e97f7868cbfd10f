"""The fits of many series as a value, and the fields of their answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from nlsq_dask.core.constraints import Reduction
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.resources import XLA_VECTOR_BITS
from nlsq_dask.io.missing import MissingRule
from nlsq_dask.kernels.devices import DeviceChoice
from nlsq_dask.kernels.lane_sums import LaneModel
from nlsq_dask.models.base import Model
from nlsq_dask.user_model.model_spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Field:
    """A quantity of the answer.

    Attributes
    ----------
    name : str
    planes : slice
        Its planes in the packed answer.
    dtype : numpy.dtype
    is_vector : bool
        Whether it has a plane for each parameter, or for each pair of them.
    """

    name: str
    planes: slice
    dtype: np.dtype[Any]
    is_vector: bool


@cache
def fields_of(n_params: int, *, covariance: bool, max_nfev: int) -> tuple[Field, ...]:
    """The fields of the answer, in the order of their planes."""
    bits = next(b for b in (8, 16, 32, 64) if n_params <= b or b == 64)
    counts = np.dtype(np.int16 if max_nfev <= np.iinfo(np.int16).max else np.int32)
    real = np.dtype(np.float64)
    sizes: list[tuple[str, int, np.dtype[Any]]] = [
        ("popt", n_params, real),
        ("perr", n_params, real),
        ("chi2", 0, real),
        ("reduced_chi2", 0, real),
        ("n_points", 0, np.dtype(np.int32)),
        ("nfev", 0, counts),
        ("status", 0, np.dtype(np.int8)),
        ("distance_to_optimum_sigma", 0, real),
        ("at_bound", 0, np.dtype(f"uint{bits}")),
    ]
    if covariance:
        sizes.append(("pcov", n_params * (n_params + 1) // 2, real))
    fields, at = [], 0
    for name, size, dtype in sizes:
        fields.append(Field(name, slice(at, at + max(size, 1)), dtype, size > 0))
        at += max(size, 1)
    return tuple(fields)


@dataclass(frozen=True, slots=True)
class Role:
    """What an array of a block is.

    Attributes
    ----------
    kind : {"y", "x", "sigma", "mask", "p0", "lower", "upper", "fixed"}
    index : int
        Number of the coordinate or of the parameter.
    along, varies : bool
        Whether it varies along the fitted axes, and along those of the map. A single series of a
        block does not show this.
    """

    kind: str
    index: int = 0
    along: bool = True
    varies: bool = True

    @property
    def key(self) -> tuple[str, int]:
        """Kind and index."""
        return self.kind, self.index


@dataclass(frozen=True, kw_only=True)
class SeriesProblem:
    """What the fits of all series share: a value that can be pickled.

    Attributes
    ----------
    spec : ModelSpec
    reduction : Reduction
        With the fixed values that are numbers.
    row_wise : bool
    roles : tuple of Role
        The arrays of a block, in order; "y" is the first.
    fit_axes, map_axes : tuple of int
        Axes of y.
    start : ndarray, shape (p,), float64
        Starting values that are numbers; NaN where there is none.
    lower, upper : ndarray, shape (p,), float64
        Bounds that are numbers.
    carried : ndarray, shape (p, p), float64
        What a fixed value that is a map adds to the offsets of all parameters.
    guess : Model or None
        Model that guesses starts.
    rule : MissingRule
    absolute_sigma : bool
    stat_tol : float
    max_nfev : int
    eps : float
        Precision of the model's values.
    covariance : bool
        Whether the answer contains covariances.
    device : str, tuple of str or None
    refine : "neighbours" or None
        Whether series get a second chance, see :mod:`nlsq_dask.engines.neighbours`.
    vector_bits : int
        Bits of the vectors of a CPU for which the fits are compiled. A process with narrower
        vectors takes its own: the answers have the same bits.
    """

    spec: ModelSpec
    reduction: Reduction
    row_wise: bool
    roles: tuple[Role, ...]
    fit_axes: tuple[int, ...]
    map_axes: tuple[int, ...]
    start: FloatArray
    lower: FloatArray
    upper: FloatArray
    carried: FloatArray
    guess: Model | None
    rule: MissingRule
    absolute_sigma: bool
    stat_tol: float
    max_nfev: int
    eps: float
    covariance: bool
    device: DeviceChoice = None
    refine: Literal["neighbours"] | None = None
    vector_bits: int = XLA_VECTOR_BITS

    def model(self, n_rows: int) -> LaneModel:
        """The model of the free parameters, for series of so many rows."""
        return LaneModel.of(self.spec, self.reduction, self.row_wise, n_rows)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The fields of the answer."""
        n_params = len(self.spec.names)
        return fields_of(n_params, covariance=self.covariance, max_nfev=self.max_nfev)

    @property
    def n_planes(self) -> int:
        """Planes of the answer, k."""
        return int(self.fields[-1].planes.stop)

    def unpacked(self, packed: Any) -> dict[str, Any]:
        """The fields of a packed answer (k, ...), by name; an array of NumPy or Dask."""
        return {
            f.name: packed[f.planes if f.is_vector else f.planes.start].astype(f.dtype)
            for f in self.fields
        }
