"""``plan``: the cost of a fit, from the arguments of the fit."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec, Protocol, cast, overload

from nlsq_dask import _errors
from nlsq_dask.api.fit import fit
from nlsq_dask.api.keywords import refuse_unknown_keywords
from nlsq_dask.planning.cost import FitCall
from nlsq_dask.results.fit_plan import FitPlan

P = ParamSpec("P")

_OF_FIT = inspect.signature(fit)
_TIME = inspect.Parameter(
    "time", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="bool | None"
)
_SIGNATURE = _OF_FIT.replace(
    parameters=[*(p for n, p in _OF_FIT.parameters.items() if n != "dry_run"), _TIME],
    return_annotation="FitPlan",
)

# Value of `dry_run` for each value of `time`.
_DRY_RUNS: Mapping[bool | None, Literal[True, "timed", "untimed"]] = {
    None: True,
    True: "timed",
    False: "untimed",
}


class PlanCall(Protocol[P]):
    """The type of ``plan``: the arguments of ``fit``, and ``time``."""

    @overload
    def __call__(self, *args: P.args, **options: P.kwargs) -> FitPlan: ...

    @overload
    def __call__(self, *args: Any, time: bool | None, **options: Any) -> FitPlan: ...


def _with_arguments_of(_: FitCall[P]) -> Callable[[Callable[..., FitPlan]], PlanCall[P]]:
    """Give a function the signature of ``fit``, for type checkers, editors and ``help``."""

    def declared(function: Callable[..., FitPlan]) -> PlanCall[P]:
        function.__signature__ = _SIGNATURE  # type: ignore[attr-defined]
        return cast("PlanCall[P]", function)

    return declared


@_with_arguments_of(fit)
def plan(*args: Any, **options: Any) -> FitPlan:
    """Predict the cost of a fit without running it.

    Takes the arguments of :func:`fit` and checks them as :func:`fit` does. Returns the strategy,
    passes, bytes to read, memory and time of the fit, and advice on chunks that would make the fit
    slow. ``fit(..., dry_run=True)`` is the same.

    Parameters
    ----------
    *args, **options
        As for :func:`fit`.
    time : bool, optional
        Whether to read and sum a few chunks (at most a quarter of the tasks of a pass, and three
        for each thread) to measure the time of a pass. The default is True for Dask and Zarr
        arrays. False reads nothing at all.

    Returns
    -------
    FitPlan
        Prints as a table.

    Raises
    ------
    InputError, InputTypeError, ModelError
        Those that :func:`fit` raises before it reads the data. Chunks that do not fit in memory are
        among them.

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np
    >>> from nlsq_dask import plan
    >>> def model(x, a, b):
    ...     return a * jnp.exp(-b * x)
    >>> x = np.linspace(0, 4, 1_000_000)
    >>> cost = plan(model, x, np.exp(-x), p0=[2, 2], memory_limit_gb=4)
    >>> cost.strategy, cost.passes, cost.data_bytes
    ('standard', (2, 4), 16000000)
    """
    refuse_unknown_keywords("plan", options, list(_SIGNATURE.parameters))
    bound = _SIGNATURE.bind(*args, **options)
    time = bound.arguments.pop("time", None)
    if time is not None and not isinstance(time, bool):
        raise _errors.unknown_choice("time", time, (True, False, None))
    found: FitPlan = fit(*bound.args, dry_run=_DRY_RUNS[time], **bound.kwargs)
    return found
