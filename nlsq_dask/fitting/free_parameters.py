"""The parameters of a fit: names, start, bounds and sizes, without units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.bounds import in_order, normalize_bounds, parameter_count
from nlsq_dask.core.constraints import (
    Reduction,
    reduce_bounds,
    reduce_parameters,
    reduce_start,
)
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.solver_state import METHOD_NAMES
from nlsq_dask.fitting.options import InputOptions
from nlsq_dask.fitting.starting_values import starting_values
from nlsq_dask.io.units import bare_bounds, bare_fixed
from nlsq_dask.user_model.signature import parameter_names


@dataclass(frozen=True)
class FreeParameters:
    """Names (p) of the parameters, and start and bounds (q,) of the free parameters."""

    names: Sequence[str]
    reduction: Reduction
    start: FloatArray
    lower: FloatArray
    upper: FloatArray


@dataclass(frozen=True)
class BareInputs:
    """Starting values, bounds and fixed values as numbers, and the units of the parameters."""

    names: tuple[str, ...]
    p0: Any
    inputs: InputOptions
    units: dict[str, str]


def without_units(model: Callable[..., Any], p0: Any, inputs: InputOptions) -> BareInputs:
    """Take the units off the starting values, the bounds and the fixed values."""
    start = starting_values(model, p0)
    p0 = start.p0
    # Where p0 is a dictionary, the model's signature says which parameters there are.
    names = parameter_names(model, parameter_count(p0))
    fixed, units = bare_fixed(inputs.fixed, start.units(names))
    bounds = bare_bounds(inputs.bounds, units, names)
    if fixed is not inputs.fixed or bounds is not inputs.bounds:
        inputs = replace(inputs, fixed=fixed, bounds=bounds)
    return BareInputs(names, p0, inputs, units)


def free_parameters(bare: BareInputs, method: str) -> FreeParameters:
    """Check the start, the bounds, and the fixed and tied parameters of a model."""
    names, inputs = bare.names, bare.inputs
    if not isinstance(method, str) or method not in METHOD_NAMES:
        raise _errors.unknown_choice("method", method, METHOD_NAMES)
    reduction = reduce_parameters(names, inputs.fixed, inputs.ties)
    lower, upper = reduce_bounds(reduction, names, *normalize_bounds(inputs.bounds, names))
    if method == "lm" and np.isfinite([lower, upper]).any():
        raise _errors.lm_bounded()
    start = reduce_start(reduction, bare.p0, names, lower, upper)
    return FreeParameters(names, reduction, start, lower, upper)


def sizes_of(x_scale: Any, reduction: Reduction, names: Sequence[str]) -> Any:
    """``x_scale`` of the free parameters, of those with the given names."""
    if isinstance(x_scale, str):
        return x_scale
    x_scale = in_order(x_scale, "x_scale", names)
    try:
        sizes = np.asarray(x_scale, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise _errors.x_scale_invalid(x_scale) from None
    if sizes.shape == reduction.offset.shape and reduction.leaders is not None:
        return sizes[list(reduction.leaders)]
    return sizes
