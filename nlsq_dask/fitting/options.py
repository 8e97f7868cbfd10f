"""What the caller of a fit says, by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask.fitting.collapse import CollapseChoice
from nlsq_dask.kernels.devices import DeviceChoice

if TYPE_CHECKING:
    from distributed import Client

    from nlsq_dask.engines.dask.cache import CacheChoice


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the caller of ``fit`` says about how the fit is run; see there.

    ``tolerances`` holds only the tolerances that were inputs.
    """

    workflow: str | None
    goal: Any
    strategy: str
    n_starts: int | None
    tolerances: Mapping[str, float | None]
    seed: int
    pilot: bool | None
    stat_tol: Any
    method: str
    max_nfev: int | None
    x_scale: Any
    memory_limit_gb: float | None
    client: Client | None
    device: DeviceChoice
    cache: CacheChoice = "auto"
    collapse: CollapseChoice = "auto"
    retries: int = 3
    on_error: str = "raise"
    diagnostics: bool = False


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Arguments of :func:`nlsq_dask.fit` about the data and the residuals."""

    sigma: Any = None
    absolute_sigma: bool = False
    mask: Any = None
    nan_policy: Any = "raise"
    fill_value: Any = None
    decode: Any = "cf"
    storage_options: Any = field(default=None, repr=False)  # credentials
    data: Any = None
    time_unit: str = "s"
    missing_chunks: str = "warn"
    checkpoint: Any = field(default=None, repr=False)  # a URL may have credentials
    bounds: Any = (-np.inf, np.inf)
    fixed: Mapping[str, float] | None = None
    ties: Any = None
    dim: Any = None
    loss: Any = "linear"
    f_scale: Any = 1.0
    jac: Any = None


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What the caller of ``fit`` wants to see and to keep; see :func:`nlsq_dask.fit`."""

    checkpoint: str | os.PathLike[str] | None
    resume: bool
    append: bool
    callback: Callable[..., Any] | None
    verbose: int
