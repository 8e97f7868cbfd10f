"""Open the engine that suits the data: in memory, or Dask."""

from __future__ import annotations

from nlsq_dask.engines.dask.executor import LOCAL, Executor
from nlsq_dask.engines.engine import Engine
from nlsq_dask.engines.in_memory import chunked_engine, standard_engine
from nlsq_dask.io.observations import Observations
from nlsq_dask.kernels.table import Kernels


def open_engine(data: Observations, kernels: Kernels, executor: Executor = LOCAL) -> Engine:
    """Open an engine with default settings.

    Parameters
    ----------
    data : Observations
    kernels : Kernels
        Of the models that questions are about. There may be none.
    executor : Executor
        Where Dask arrays are read; by default on Dask's local scheduler.
    """
    if data.lazy:
        # Dask is imported only if it is needed.
        from nlsq_dask.engines.dask.engine import DaskEngine, Streaming
        from nlsq_dask.engines.dask.groups import make_stream

        return DaskEngine(data, kernels, Streaming(make_stream(data), executor))
    return standard_engine(data, kernels) if kernels.whole else chunked_engine(data, kernels)
