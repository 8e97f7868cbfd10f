"""Nonlinear least squares for data of any size, in memory or behind a Dask cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nlsq_dask._errors import (
    CheckpointWarning,
    ConvergenceError,
    ConvergenceWarning,
    CovarianceWarning,
    DerivativeWarning,
    FitError,
    FitWarning,
    InputError,
    InputTypeError,
    LossScaleWarning,
    MissingLibraryError,
    ModelError,
    NotRowWiseError,
    PrecisionWarning,
    Status,
    UntraceableModelError,
)

if TYPE_CHECKING:
    from nlsq_dask._comparison import ModelComparison
    from nlsq_dask._curve_fit import curve_fit
    from nlsq_dask._dry_run import plan
    from nlsq_dask._fit import fit
    from nlsq_dask._fit_models import fit_models
    from nlsq_dask._fit_plan import FitPlan
    from nlsq_dask._profile import Profile
    from nlsq_dask._record import PilotRecord, Start
    from nlsq_dask._result import FitResult, Parameter

__version__ = "0.1.0"

__all__ = [
    "CheckpointWarning",
    "ConvergenceError",
    "ConvergenceWarning",
    "CovarianceWarning",
    "DerivativeWarning",
    "FitError",
    "FitPlan",
    "FitResult",
    "FitWarning",
    "InputError",
    "InputTypeError",
    "LossScaleWarning",
    "MissingLibraryError",
    "ModelComparison",
    "ModelError",
    "NotRowWiseError",
    "Parameter",
    "PilotRecord",
    "PrecisionWarning",
    "Profile",
    "Start",
    "Status",
    "UntraceableModelError",
    "curve_fit",
    "fit",
    "fit_models",
    "plan",
]

# Loaded when first used: JAX takes a second to import, and a script may only want the errors.
_LAZY = {
    "fit": "nlsq_dask._fit",
    "fit_models": "nlsq_dask._fit_models",
    "curve_fit": "nlsq_dask._curve_fit",
    "ModelComparison": "nlsq_dask._comparison",
    "plan": "nlsq_dask._dry_run",
    "FitPlan": "nlsq_dask._plan",
    "FitResult": "nlsq_dask._result",
    "Parameter": "nlsq_dask._result",
    "PilotRecord": "nlsq_dask._record",
    "Profile": "nlsq_dask._profile",
    "Start": "nlsq_dask._record",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
