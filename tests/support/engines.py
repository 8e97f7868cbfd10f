"""Engines of all kinds, made in one call."""

from __future__ import annotations

from typing import Any

from nlsq_dask import InputError
from nlsq_dask.core.minimize import PriorKnowledge, minimize
from nlsq_dask.core.questions import answered
from nlsq_dask.core.reflective import Box
from nlsq_dask.core.solver_state import Solution, SolverOptions
from nlsq_dask.engines import in_memory
from nlsq_dask.engines.dask.engine import DaskEngine, Streaming
from nlsq_dask.engines.dask.executor import executor_of
from nlsq_dask.engines.dask.groups import make_stream
from nlsq_dask.engines.open_engine import open_engine
from nlsq_dask.fitting import sample
from nlsq_dask.fitting.first_look import looked_at
from nlsq_dask.io.observations import Observations
from nlsq_dask.kernels.table import Kernels
from nlsq_dask.questions.bad_values import BadValues
from nlsq_dask.user_model.model_spec import ModelSpec


def standard_engine(data: Observations, *specs: ModelSpec, whole: bool = False) -> Any:
    """Rows that are ready for the kernel."""
    return in_memory.standard_engine(data, Kernels(specs, whole=whole))


def chunked_engine(data: Observations, *specs: ModelSpec, **options: Any) -> Any:
    """Rows staged in every pass."""
    return in_memory.chunked_engine(data, Kernels(specs), **options)


def dask_engine(
    data: Observations,
    *specs: ModelSpec,
    progress: Any = None,
    client: Any = None,
    **options: Any,
) -> DaskEngine:
    """The streaming tier, with the options of :class:`Streaming`."""
    streaming = Streaming(make_stream(data), executor_of(client, lazy=False), **options)
    return DaskEngine(data, Kernels(specs), streaming, progress)


def sample_of(engine: DaskEngine, data: Observations, **options: Any) -> Observations:
    """The sample that a fit would take."""
    options = {"most": 1_000_000} | options
    return sample.sample_of(engine, data, taken={}, **options)[0]


def finite_problem(data: Observations, client: Any = None) -> InputError | None:
    """What is wrong with the values of the data."""
    with open_engine(data, Kernels(()), executor_of(client, lazy=False)) as engine:
        return engine.ask(BadValues(len(data.values))).error(data.names, data.marks)


def looked_at_first(engine: Any, data: Observations, question: Any) -> Any:
    """The answer to the first question of a fit."""

    def search():
        return (yield question)

    return answered(looked_at(search(), data), engine.ask)


def minimized(
    engine: Any,
    p0: Any,
    lower: Any,
    upper: Any,
    options: SolverOptions,
    observer: Any = None,
    **known: Any,
) -> Solution:
    """A search for the minimum, run to its end."""
    search = minimize(p0, Box(lower, upper), options, observer, known=PriorKnowledge(**known))
    return answered(search, engine.ask)
