"""How precisely a model computes its values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from nlsq_dask.core.factor import EPS
from nlsq_dask.kernels.model import ModelSpec, trace_model


def model_eps(spec: ModelSpec, n_rows: int) -> float:
    """Relative precision of a model's values: that of the coarsest type of float in its trace.

    Parameters
    ----------
    spec : ModelSpec
    n_rows : int
        Number of rows that the model takes.

    Returns
    -------
    float
        ``np.finfo(dtype).eps``: 2.2e-16 for a model in float64, 1.2e-7 where float32 is in it.
    """
    closed = trace_model(spec, n_rows)
    types = {t for t in _dtypes(closed.jaxpr) if jnp.issubdtype(t, jnp.floating)}
    precisions = (float(jnp.finfo(t).eps) for t in types)  # type: ignore[no-untyped-call]
    return max(precisions, default=EPS)


def _dtypes(jaxpr: Any) -> Iterator[np.dtype[Any]]:
    """The types of all values that a trace computes, those of inner traces included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            if hasattr(variable.aval, "dtype"):
                yield variable.aval.dtype
        for inner in jaxprs_in_params(equation.params):
            yield from _dtypes(inner)
