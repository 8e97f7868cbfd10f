"""The engine of data, wherever the data are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nlsq_dask.engines.engine import Engine
from nlsq_dask.engines.in_memory import chunked_engine, standard_engine
from nlsq_dask.io.observations import Observations
from nlsq_dask.kernels.table import Kernels

if TYPE_CHECKING:
    from distributed import Client


def open_engine(data: Observations, kernels: Kernels, client: Client | None = None) -> Engine:
    """Open an engine with default settings.

    Parameters
    ----------
    data : Observations
    kernels : Kernels
        Of the models that questions are about; none where no question is about a model.
    client : distributed.Client, optional
        Cluster that reads lazy arrays.
    """
    if data.lazy:
        # The streaming engine is loaded for use.
        from nlsq_dask.engines.dask.engine import DaskEngine, Streaming
        from nlsq_dask.engines.dask.groups import make_stream

        return DaskEngine(data, kernels, Streaming(make_stream(data), client))
    return standard_engine(data, kernels) if kernels.whole else chunked_engine(data, kernels)
