"""A job: a fit whose arguments are checked and whose course is decided, before any reading."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any

from nlsq_dask.core.constraints import Reduction
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.resources import XLA_VECTOR_BITS
from nlsq_dask.core.solver_state import SolverOptions
from nlsq_dask.core.workflow import BlockConfig, WorkflowPlan
from nlsq_dask.engines.dask.executor import LOCAL, Executor, running
from nlsq_dask.fitting.strategy import Standard, Strategy, Streamed
from nlsq_dask.io.codec import to_json
from nlsq_dask.io.observations import Observations
from nlsq_dask.kernels.devices import DeviceChoice
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.user_model.loss import LINEAR
from nlsq_dask.user_model.model_spec import ModelSpec

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.cache import CacheChoice
    from nlsq_dask.engines.dask.groups import Stream

logger = logging.getLogger("nlsq_dask")

# Name of the width of the vectors among the versions in a checkpoint.
VECTOR_BITS = "vector_bits"


@dataclass(frozen=True)
class Source:
    """Data that several fits may share.

    Attributes
    ----------
    data : Observations
    correlated : array_like of shape (n, n) or None
        Covariance matrix of the rows.
    checkpoint_options : mapping or None
        Options of the object store of the checkpoints.
    """

    data: Observations
    correlated: Any = None
    checkpoint_options: Mapping[str, Any] | None = field(default=None, repr=False)  # credentials

    @cached_property
    def stream(self) -> Stream:
        """Groups of blocks of lazy data, planned once."""
        return stream_of(self.data)


@dataclass(frozen=True, kw_only=True)
class Job:
    """All decisions about a fit.

    Attributes
    ----------
    data : Observations
    spec : ModelSpec
        The model; its names are the parameters'.
    row_wise : bool
        Whether the model may be evaluated block by block: row by row, or whole series.
    reduction : Reduction
        How the parameters follow from the free ones, which the solver sees.
    start, lower, upper : ndarray, shape (q,), float64
        Of the free parameters.
    absolute_sigma : bool
    plan : WorkflowPlan
        Workflow, budget, tolerances, starts.
    options : SolverOptions
    strategy : Standard, Chunked or Streamed
        How the rows are read.
    device : str, tuple of str or None
    guess : callable or None
        The model's own guess of a start, where the caller gave none.
    seed : int
        Of the starts.
    pilot : bool
        Whether a sample is fitted first.
    cache : bool or "auto"
        Whether streamed rows stay in memory after the first pass.
    n_distinct : int
        Distinct coordinates to whose means the rows are collapsed; 0 if they are not.
    retries : int
        Times that a failed reading of streamed data is tried again.
    on_error : {"raise", "omit"}
        Whether a block that cannot be read ends the fit, or is left out.
    missing_chunks : {"warn", "raise", "omit", "fill"}
        What happens to chunks of Zarr arrays that are not in the store.
    diagnostics : bool
        Whether the sums of each block are kept.
    param_units : mapping of str to str
        Units of the parameters that have one, by name.
    checkpoint_options : mapping or None
        Options of the object store of the checkpoints.
    vector_bits : int
        Bits of the vectors of a CPU for which the kernels are compiled, wherever the fit runs.
    """

    data: Observations
    spec: ModelSpec
    row_wise: bool
    reduction: Reduction
    start: FloatArray
    lower: FloatArray
    upper: FloatArray
    absolute_sigma: bool
    plan: WorkflowPlan
    options: SolverOptions
    strategy: Strategy
    device: DeviceChoice
    guess: Callable[..., Any] | None
    seed: int
    pilot: bool
    cache: CacheChoice
    retries: int
    n_distinct: int = 0
    on_error: str = "raise"
    missing_chunks: str = "warn"
    diagnostics: bool = False
    param_units: Mapping[str, str] = field(default_factory=dict)
    checkpoint_options: Mapping[str, Any] | None = field(default=None, repr=False)  # credentials
    vector_bits: int = XLA_VECTOR_BITS

    @property
    def executor(self) -> Executor:
        """Where the data are read."""
        return self.strategy.executor if isinstance(self.strategy, Streamed) else LOCAL

    def running(self) -> Job:
        """The job where its tasks can run now, although its client may have been closed."""
        if not isinstance(self.strategy, Streamed):
            return self
        return replace(self, strategy=replace(self.strategy, executor=running(self.executor)))

    @property
    def box(self) -> Box:
        """The bounds of the free parameters."""
        return Box(self.lower, self.upper)

    @property
    def kernels(self) -> Kernels:
        """The compiled kernel of the model."""
        return Kernels((self.spec,), self.device, not self.row_wise, self.vector_bits)

    def description(self, *, of_0_1: bool = False) -> dict[str, Any]:
        """What tells this fit from other fits, as JSON values for checkpoints.

        With `of_0_1` as version 0.1 described it, without the traces of the functions.
        """
        data, plan, options = self.data, self.plan, self.options
        spec = self.spec.untraced() if of_0_1 else self.spec
        chunks = self.strategy.stream.chunks if isinstance(self.strategy, Streamed) else None
        blocks = None if isinstance(self.strategy, Standard) else self.strategy.blocks
        groups = {}
        if isinstance(self.strategy, Streamed) and self.strategy.recut:
            groups["groups"] = self.strategy.sizes
        return {
            "model": replace(spec, loss=LINEAR).key,
            "parameters": list(self.spec.names),
            "shapes": [list(a.shape) for a in data.operands],
            "dtypes": [str(a.dtype) for a in data.operands],
            "chunks": to_json(chunks),
            "missing": repr(data.rule),
            **({"decoded": list(data.decoded)} if data.decoded else {}),
            "fixed and ties": to_json([self.reduction.matrix, self.reduction.offset]),
            "bounds": to_json([self.lower, self.upper]),
            "p0": to_json(self.start),
            "strategy": plan.strategy,
            "block_rows": None if blocks is None else blocks.block_rows,
            "loss": spec.loss.token,
            "method": options.method,
            "stat_tol": to_json(options.stat_tol),
            "residual_variance": to_json(options.residual_variance),
            "tolerances": {name: to_json(value) for name, value in plan.tolerances.items()},
            "max_nfev": to_json(options.max_nfev),
            "x_scale": to_json(options.x_scale),
            "n_starts": plan.n_starts,
            "seed": self.seed,
            "pilot": self.pilot,
            # None as in files that were written before rows could be collapsed.
            "collapse": self.n_distinct or None,
            **({"times": list(map(str, data.times))} if any(data.times) else {}),
            **({"missing_chunks": "omit"} if self.missing_chunks == "omit" else {}),
            **({"diagnostics": True} if self.diagnostics else {}),
            **({"series": list(data.series_axes)} if data.series_axes else {}),
            **groups,
        }


def versions(job: Job) -> dict[str, str]:
    """Versions of the libraries, and the width of the vectors, on which a fit's bits depend."""
    own: str = sys.modules["nlsq_dask"].__version__
    libraries = {name: metadata.version(name) for name in ("dask", "jax", "numpy")}
    return {"nlsq_dask": own} | libraries | {VECTOR_BITS: str(job.vector_bits)}


def stream_of(
    data: Observations,
    config: BlockConfig | None = None,
    *,
    each: bool = False,
    first: Sequence[int] | None = None,
) -> Stream:
    """Groups of blocks: of the chunks of lazy data, or cut from data in memory.

    With `each`, each block is a group of its own. `first` has the numbers of blocks of the first
    groups.
    """
    from nlsq_dask.engines.dask.groups import UNCHUNKED_BLOCK_ROWS, make_stream  # loaded for use

    rows = UNCHUNKED_BLOCK_ROWS if config is None else config.block_rows
    return make_stream(data, rows, each=each, first=first)
