"""A fit as a value: everything decided and checked, nothing read yet."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from nlsq_dask import _errors
from nlsq_dask.core.bounds import normalize_bounds, normalize_p0
from nlsq_dask.core.memory_budget import GB, size_sample
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.trf import TrfOptions
from nlsq_dask.core.workflow import BlockConfig, Machine, Problem, WorkflowPlan, plan_workflow
from nlsq_dask.engines.in_memory import InMemoryEvaluator, chunked_evaluator, standard_evaluator
from nlsq_dask.io.checkpoint import to_json
from nlsq_dask.io.sources import Observations, is_dask, observe
from nlsq_dask.io.stage import STAGE_ROWS
from nlsq_dask.kernels.block import find_device
from nlsq_dask.kernels.model import ModelSpec, parameter_names, prepare_model
from nlsq_dask.kernels.rows import row_dependence

if TYPE_CHECKING:
    from distributed import Client

    from nlsq_dask.engines.dask import DaskEvaluator, PassProgress
    from nlsq_dask.engines.groups import StreamPlan

# Rows of data in memory that are shown to the model to see whether it works row by row.
SAMPLE_ROWS = 64

# Rows up to which the model is first tried on as many rows as there are. Nothing is computed in a
# trial, but a careless model may allocate.
MAX_TRIAL_ROWS = 100_000_000

logger = logging.getLogger("nlsq_dask")


@dataclass(frozen=True)
class Wishes:
    """What the caller of ``fit`` says about how it is to be run; see there.

    ``tolerances`` holds only those that were given.
    """

    workflow: str | None
    goal: Any
    strategy: str
    n_starts: int | None
    tolerances: Mapping[str, float | None]
    max_nfev: int | None
    x_scale: Any
    memory_limit_gb: float | None
    client: Client | None
    device: str | None


@dataclass(frozen=True)
class Job:
    """A fit, decided.

    Attributes
    ----------
    data : Observations
    spec : ModelSpec
        The model; its names are the parameters'.
    row_wise : bool
        Whether the model may be evaluated block by block.
    start, lower, upper : ndarray, shape (p,), float64
    plan : WorkflowPlan
        Strategy, tolerances, starts.
    options : TrfOptions
    stream : StreamPlan or None
        Groups of blocks, where the strategy is streaming.
    client : distributed.Client or None
        Cluster that streams.
    device : {"cpu", "gpu"} or None
    """

    data: Observations
    spec: ModelSpec
    row_wise: bool
    start: FloatArray
    lower: FloatArray
    upper: FloatArray
    plan: WorkflowPlan
    options: TrfOptions
    stream: StreamPlan | None
    client: Client | None
    device: str | None

    def evaluator(self, progress: PassProgress) -> InMemoryEvaluator[Any] | DaskEvaluator:
        """Make the evaluator of the chosen strategy."""
        config = self.plan.config
        if self.stream is not None:
            from nlsq_dask.engines.dask import DaskEvaluator  # an engine, loaded for use

            assert config is not None, "a streaming fit has blocks"
            return DaskEvaluator(
                self.data,
                self.spec,
                self.device,
                self.client,
                progress,
                self.stream,
                min(config.block_rows, STAGE_ROWS),
                config.threads,
                size_sample(self.plan.budget.threshold_gb * GB, len(self.data.coords)),
            )
        if config is None:
            return standard_evaluator(self.data, self.spec, self.device, self.row_wise)
        return chunked_evaluator(
            self.data, self.spec, self.device, config.block_rows, config.threads
        )

    def description(self) -> dict[str, Any]:
        """What makes this fit another one, as JSON values: for checkpoints."""
        data, plan = self.data, self.plan
        return {
            "model": self.spec.token,
            "parameters": list(self.spec.names),
            "shapes": [list(a.shape) for a in data.operands],
            "dtypes": [str(a.dtype) for a in data.operands],
            "chunks": None if self.stream is None else to_json(self.stream.chunks),
            "bounds": to_json([self.lower, self.upper]),
            "p0": to_json(self.start),
            "strategy": plan.strategy,
            "block_rows": None if plan.config is None else plan.config.block_rows,
            "loss": "linear",
            "tolerances": {name: to_json(value) for name, value in plan.tolerances.items()},
            "max_nfev": to_json(self.options.max_nfev),
            "x_scale": to_json(self.options.x_scale),
            "n_starts": plan.n_starts,
        }


def versions() -> dict[str, str]:
    """Versions of the libraries on which a fit's bits depend."""
    own: str = sys.modules["nlsq_dask"].__version__
    return {"nlsq_dask": own} | {name: metadata.version(name) for name in ("dask", "jax", "numpy")}


def prepare(
    model: Callable[..., Any],
    x: Any,
    y: Any,
    p0: ArrayLike | Mapping[str, float] | None,
    sigma: Any,
    bounds: Any,
    wishes: Wishes,
) -> Job:
    """Check the arguments of a fit and decide how it is run; see :func:`nlsq_dask.fit`."""
    data = observe(x, y, sigma)
    # By name, p0 says which parameters there are only through the model's signature.
    count = None if p0 is None or isinstance(p0, Mapping) else int(np.size(p0))
    names = parameter_names(model, count)
    lower, upper = normalize_bounds(bounds, names)
    start = normalize_p0(p0, names, lower, upper)
    # A model that takes all rows at once may accept no other number of them.
    trial_rows = data.n_rows if data.n_rows <= MAX_TRIAL_ROWS else None
    spec = prepare_model(model, names, data.structure, len(data.coords), trial_rows)
    dependence = row_dependence(spec, start, None if data.lazy else _sample(data))
    client, stream = None, None
    if data.lazy:
        client, stream = _active_client(wishes.client), _plan_stream(data)
    plan = _plan(data, len(names), dependence is None, wishes, client, stream)
    if dependence is not None and plan.strategy != "standard":
        raise _errors.not_row_wise(dependence)
    if plan.strategy == "streaming" and stream is None:
        # Data in memory stay there, unless a cluster is named for them: sent to the active one
        # they would be in memory once more.
        client, stream = wishes.client, _plan_stream(data, plan.config)
    options = TrfOptions(
        **plan.tolerances, max_nfev=wishes.max_nfev, x_scale=_sizes(wishes.x_scale)
    )
    logger.info("%d rows, %d parameters: %s", data.n_rows, len(names), plan.summary)
    return Job(
        data,
        spec,
        dependence is None,
        start,
        lower,
        upper,
        plan,
        options,
        stream,
        client,
        wishes.device,
    )


def _active_client(wanted: Client | None) -> Client | None:
    from nlsq_dask.engines.dask import active_client  # an engine, loaded for use

    return active_client(wanted)


def _plan_stream(data: Observations, config: BlockConfig | None = None) -> StreamPlan:
    from nlsq_dask.engines.groups import UNCHUNKED_BLOCK_ROWS, plan_stream  # loaded for use

    return plan_stream(data, UNCHUNKED_BLOCK_ROWS if config is None else config.block_rows)


def _plan(
    data: Observations,
    n_params: int,
    row_wise: bool,
    wishes: Wishes,
    client: Client | None,
    stream: StreamPlan | None,
) -> WorkflowPlan:
    worker, threads = None, None
    if client is not None:
        from nlsq_dask.engines.cluster import smallest_worker  # an engine, loaded for use

        worker = smallest_worker(client)
    elif data.lazy:
        from nlsq_dask.engines.dask import local_threads  # an engine, loaded for use

        threads = local_threads()
    on_gpu = client is None and find_device(wishes.device).platform != "cpu"
    chunk, chunk_bytes = (None, 0) if stream is None else _largest_chunk(data, stream)
    return plan_workflow(
        Problem(
            data.n_rows,
            n_params,
            len(data.coords),
            lazy=data.lazy,
            row_wise=row_wise,
            broadcasts=not data.flat,
            chunks=chunk,
            chunk_bytes=chunk_bytes,
        ),
        Machine(wishes.memory_limit_gb, on_gpu, threads, worker),
        wishes.workflow,
        wishes.goal,
        strategy=wishes.strategy,
        n_starts=wishes.n_starts,
        tolerances=wishes.tolerances,
    )


def _largest_chunk(data: Observations, stream: StreamPlan) -> tuple[tuple[int, ...], int]:
    """Shape and decoded bytes of what a thread reads at a time, of all arrays together.

    Where the arrays' chunks differ, blocks are cut from chunks that are larger than they are.
    """
    lazy = [a for a in data.operands if is_dask(a)]
    grids = [stream.chunks, *(a.chunks for a in lazy)]
    shape = tuple(max(map(max, cuts)) for cuts in zip(*grids, strict=True))
    read = sum(math.prod(map(max, a.chunks)) * int(a.dtype.itemsize) for a in lazy)
    return shape, max(read, stream.block_bytes)


def _sizes(x_scale: Any) -> Any:
    return x_scale if isinstance(x_scale, str) else np.asarray(x_scale, dtype=np.float64)


def _sample(data: Observations) -> tuple[FloatArray, ...]:
    """Coordinates of a few rows spread over data in memory."""
    rows = np.unique(np.linspace(0, data.n_rows - 1, SAMPLE_ROWS).astype(np.intp))
    index = np.unravel_index(rows, data.y.shape)
    return tuple(
        np.asarray(np.broadcast_to(c, data.y.shape)[index], np.float64) for c in data.coords
    )
