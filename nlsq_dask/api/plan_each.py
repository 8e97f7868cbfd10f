"""``plan_each``: the cost of many fits, from the arguments of the fits."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ParamSpec

from nlsq_dask.api.fit_each import checked_job, fit_each
from nlsq_dask.api.keywords import refuse_unknown_keywords
from nlsq_dask.engines.dask.executor import LOCAL, executor_of
from nlsq_dask.fitting.each import EachOptions
from nlsq_dask.fitting.options import InputOptions
from nlsq_dask.planning.each_cost import plan_of_each
from nlsq_dask.results.maps_plan import MapsPlan

P = ParamSpec("P")

_SIGNATURE = inspect.signature(fit_each)


def _with_arguments_of(
    _: Callable[P, object],
) -> Callable[[Callable[..., MapsPlan]], Callable[P, MapsPlan]]:
    """Give a function the signature of ``fit_each``, for type checkers, editors and ``help``."""

    def declared(function: Callable[..., MapsPlan]) -> Callable[P, MapsPlan]:
        function.__signature__ = _SIGNATURE.replace(  # type: ignore[attr-defined]
            return_annotation="MapsPlan"
        )
        return function

    return declared


@_with_arguments_of(fit_each)
def plan_each(*args: Any, **options: Any) -> MapsPlan:
    """Predict the cost of many fits without running them.

    Takes the arguments of :func:`fit_each` and checks them as :func:`fit_each` does. Nothing is
    read, and a store is not opened.

    Parameters
    ----------
    *args, **options
        As for :func:`fit_each`.

    Returns
    -------
    MapsPlan
        Prints as a table.

    Raises
    ------
    InputError, InputTypeError, ModelError
        Those that :func:`fit_each` raises before it reads the data.

    Examples
    --------
    >>> import dask.array as da, numpy as np
    >>> from nlsq_dask import models, plan_each
    >>> cube = da.zeros((60, 512, 512), chunks=(20, 128, 128), dtype="f4")
    >>> cost = plan_each(models.ExponentialDecay(), np.arange(60.0), cube, store="maps.zarr")
    >>> cost.series, cost.blocks, cost.joined, cost.readings
    (262144, 16, 3, 1)
    """
    refuse_unknown_keywords("plan_each", options, list(_SIGNATURE.parameters))
    bound = _SIGNATURE.bind(*args, **options)
    bound.apply_defaults()
    given = bound.arguments

    def chosen(kind: type) -> dict[str, Any]:
        return {f.name: given[f.name] for f in fields(kind) if f.name in given and f.name != "dim"}

    inputs = InputOptions(**chosen(InputOptions))
    own = EachOptions(**chosen(EachOptions))
    arguments = {name: given[name] for name in ("model", "x", "y", "p0", "dim")}
    job = checked_job(**arguments, inputs=inputs, options=own)
    if given["store"] is not None:
        from nlsq_dask.fitting.each_store import in_regions  # with Zarr, loaded for use

        job = in_regions(job)
    executor = executor_of(given["client"]) if job.lazy else LOCAL
    return plan_of_each(job, executor, stored=given["store"] is not None)
