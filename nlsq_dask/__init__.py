"""Nonlinear least squares for data of any size, in memory or behind a Dask cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nlsq_dask._errors import (
    CheckpointWarning,
    ClusterError,
    ClusterWarning,
    ConvergenceError,
    ConvergenceWarning,
    CovarianceWarning,
    DataChangedError,
    DerivativeWarning,
    FitError,
    FitWarning,
    ForkError,
    InputError,
    InputTypeError,
    LossScaleWarning,
    MissingDataWarning,
    MissingLibraryError,
    ModelError,
    NotRowWiseError,
    PrecisionWarning,
    ReadingError,
    Status,
    UntraceableModelError,
)

if TYPE_CHECKING:
    from nlsq_dask.api.curve_fit import curve_fit
    from nlsq_dask.api.fit import fit
    from nlsq_dask.api.fit_each import fit_each
    from nlsq_dask.api.fit_models import fit_models
    from nlsq_dask.api.plan import plan
    from nlsq_dask.api.plan_each import plan_each
    from nlsq_dask.api.show_versions import show_versions
    from nlsq_dask.results.blocks import BlockDiagnostics
    from nlsq_dask.results.comparison import ModelComparison
    from nlsq_dask.results.fit_plan import FitPlan
    from nlsq_dask.results.maps import FitMaps
    from nlsq_dask.results.maps_plan import MapsPlan
    from nlsq_dask.results.profile import Profile
    from nlsq_dask.results.record import PilotRecord, Start
    from nlsq_dask.results.result import FitResult, Parameter

__version__ = "0.1.0"

__all__ = [
    "BlockDiagnostics",
    "CheckpointWarning",
    "ClusterError",
    "ClusterWarning",
    "ConvergenceError",
    "ConvergenceWarning",
    "CovarianceWarning",
    "DataChangedError",
    "DerivativeWarning",
    "FitError",
    "FitMaps",
    "FitPlan",
    "FitResult",
    "FitWarning",
    "ForkError",
    "InputError",
    "InputTypeError",
    "LossScaleWarning",
    "MapsPlan",
    "MissingDataWarning",
    "MissingLibraryError",
    "ModelComparison",
    "ModelError",
    "NotRowWiseError",
    "Parameter",
    "PilotRecord",
    "PrecisionWarning",
    "Profile",
    "ReadingError",
    "Start",
    "Status",
    "UntraceableModelError",
    "curve_fit",
    "fit",
    "fit_each",
    "fit_models",
    "plan",
    "plan_each",
    "show_versions",
]

# Loaded when first used: JAX takes a second to import, and a script may only want the errors.
_LAZY = {
    "fit": "nlsq_dask.api.fit",
    "fit_each": "nlsq_dask.api.fit_each",
    "fit_models": "nlsq_dask.api.fit_models",
    "curve_fit": "nlsq_dask.api.curve_fit",
    "BlockDiagnostics": "nlsq_dask.results.blocks",
    "ModelComparison": "nlsq_dask.results.comparison",
    "plan": "nlsq_dask.api.plan",
    "plan_each": "nlsq_dask.api.plan_each",
    "show_versions": "nlsq_dask.api.show_versions",
    "FitMaps": "nlsq_dask.results.maps",
    "FitPlan": "nlsq_dask.results.fit_plan",
    "MapsPlan": "nlsq_dask.results.maps_plan",
    "FitResult": "nlsq_dask.results.result",
    "Parameter": "nlsq_dask.results.result",
    "PilotRecord": "nlsq_dask.results.record",
    "Profile": "nlsq_dask.results.profile",
    "Start": "nlsq_dask.results.record",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
