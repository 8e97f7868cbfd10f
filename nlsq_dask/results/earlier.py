"""Results of version 0.1, judged by the rule of today.

Version 0.1 called a fit a success as soon as one of SciPy's criteria was met. Today a success is
also near the optimum; see :mod:`nlsq_dask.core.convergence`. A file of version 0.1 has the distance
to the optimum, so its status is judged again when the file is read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nlsq_dask._errors import Status
from nlsq_dask.core.convergence import LEAST_PART, NEAR_TOL
from nlsq_dask.core.distance import estimated_variance
from nlsq_dask.core.factor import EPS, rank_tolerance
from nlsq_dask.core.search import rounding_length
from nlsq_dask.core.vectors import column_norms, nonzero

# Criteria of SciPy's that ended a search of version 0.1.
CRITERIA = (Status.GRADIENT, Status.COST, Status.STEP, Status.COST_AND_STEP)


def judged_today(saved: dict[str, Any]) -> dict[str, Any]:
    """Judge the fields of a result that version 0.1 wrote.

    Parameters
    ----------
    saved : dict
        The fields of the result.

    Returns
    -------
    dict
        The fields with the status, the criterion that was met, and what the data leave open.
    """
    status = saved["status"]
    met = status if status in CRITERIA else None
    undetermined = _undetermined(saved)
    if status.success and not _is_near(saved):
        status = Status.STALLED
    elif status.success and undetermined:
        status = Status.UNDETERMINED
    return saved | {"status": status, "scipy_status": met, "undetermined": undetermined}


def _is_near(saved: dict[str, Any]) -> bool:
    """Whether the distance to the optimum is small, at rounding, or not known."""
    distance = saved["distance_to_optimum_sigma"]
    if np.isnan(distance) or distance <= max(saved["tolerances"].get("stat_tol") or 0.0, NEAR_TOL):
        return True
    norms, free = column_norms(saved["r_factor"]), _free(saved, saved["popt"])
    if free.size != norms.size:  # parameters are tied: the file does not tell which are free
        free = np.zeros_like(norms)
    variance = 1.0
    if not saved["absolute_sigma"]:
        variance = estimated_variance(saved["cost"], saved["n_points"], saved["n_free"])
    with np.errstate(over="ignore", invalid="ignore"):
        rounding = rounding_length(free, saved["moments"], norms, EPS)
    return bool(distance * variance**0.5 <= rounding)


def _undetermined(saved: dict[str, Any]) -> tuple[str, ...]:
    """Names of the parameters that take part in directions without effect.

    Where parameters are tied, the file does not tell which of them are free.
    """
    factor, names = saved["r_factor"], _free(saved, np.array(saved["names"], object))
    if names.size != factor.shape[1] or not np.isfinite(factor).all():
        return ()
    _, singular, v_transposed = np.linalg.svd(factor / nonzero(column_norms(factor)))
    rtol = rank_tolerance(saved["n_points"], names.size)
    weak = np.abs(v_transposed[~(singular > rtol * singular[0])])
    parts = weak / np.max(weak, axis=1, initial=EPS, keepdims=True)
    return tuple(names[(parts > LEAST_PART).any(axis=0)].tolist())


def _free(saved: dict[str, Any], values: Any) -> Any:
    """Values of the parameters that are not fixed."""
    return values[[name not in saved["fixed"] for name in saved["names"]]]
