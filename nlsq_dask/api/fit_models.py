"""``fit_models``: fit several models in the same readings of the data, and compare them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.api.fit import Tolerance, given_tolerances
from nlsq_dask.api.keywords import naming_unknown_keywords
from nlsq_dask.core.checks import checked_progress, checked_retries, checked_seed
from nlsq_dask.core.workflow import OptimizationGoal
from nlsq_dask.fitting.faces import faces_of
from nlsq_dask.fitting.options import InputOptions, RunOptions
from nlsq_dask.fitting.progress import Progress
from nlsq_dask.fitting.several_models import prepare_models, results_of, run_models
from nlsq_dask.kernels.devices import DeviceArgument, checked_device
from nlsq_dask.results.comparison import ModelComparison
from nlsq_dask.user_model.signature import model_label

if TYPE_CHECKING:
    from distributed import Client


Model = Callable[..., Any]


@naming_unknown_keywords
def fit_models(
    models: Sequence[Model] | Mapping[str, Model],
    x: Any,
    y: Any,
    p0: Any = None,
    *,
    bounds: Any = None,
    fixed: Any = None,
    ties: Any = None,
    dim: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    mask: Any = None,
    nan_policy: Literal["raise", "omit"] | None = "raise",
    fill_value: float | None = None,
    decode: Literal["cf", False] = "cf",
    storage_options: Mapping[str, Any] | None = None,
    data: Any = None,
    time_unit: str = "s",
    method: Literal["trf", "lm", "dogbox"] = "trf",
    loss: str | Callable[..., Any] = "linear",
    f_scale: float = 1.0,
    ftol: Tolerance = "auto",
    xtol: Tolerance = "auto",
    gtol: Tolerance = "auto",
    stat_tol: Tolerance = "auto",
    max_nfev: int | None = None,
    strategy: Literal["auto", "standard", "chunked", "streaming"] = "auto",
    workflow: str | None = None,
    goal: OptimizationGoal | str | None = None,
    memory_limit_gb: float | None = None,
    n_starts: int | None = None,
    seed: int = 0,
    pilot: bool | None = None,
    cache: bool | Literal["auto"] = "auto",
    collapse: bool | Literal["auto"] = "auto",
    retries: int = 3,
    on_error: Literal["raise", "omit"] = "raise",
    missing_chunks: Literal["warn", "raise", "omit", "fill"] = "warn",
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    client: Client | None = None,
    device: DeviceArgument = None,
    progress: bool | None = None,
) -> ModelComparison:
    """Fit several models to the same data, in as many readings as one fit takes.

    All models see a block of rows while it is in memory. So k models take as many readings as the
    model that takes most, not the sum. Each result has the same bits as :func:`fit` with the same
    options.

    Parameters
    ----------
    models : sequence or dict of callable
        ``{name: model}``, or ``[model, ...]``, where models take the names of the functions. Equal
        names get the position, as in ``"model [1]"``. Each model is as for :func:`fit`.
    x, y : array_like
        The data, as for :func:`fit`.
    p0, bounds, fixed, ties : sequence or dict, optional
        An entry for each model in the order of the models, or ``{name: entry}``, which may leave
        models out. Each entry is as for :func:`fit`; None is the default of :func:`fit`.
    dim : name, int, or sequence of these, optional
        Dimensions of ``y`` along which the models take whole series, as for :func:`fit`.
    sigma, absolute_sigma, mask, nan_policy, fill_value, decode, storage_options : optional
        Weights, missing rows, packed numbers and object stores, as for :func:`fit`.
    data, time_unit : optional
        Data set of named variables, and unit of times, as for :func:`fit`.
    method, loss, f_scale, ftol, xtol, gtol, stat_tol, max_nfev : optional
        How each model is fitted, as for :func:`fit`.
    strategy, workflow, goal, memory_limit_gb, n_starts, seed, pilot : optional
        How the fits are run, as for :func:`fit`.
    cache, collapse, retries, on_error, missing_chunks : optional
        How the data are read, as for :func:`fit`. A sample is read once for all models. Models that
        guess their start share another reading, if :func:`fit` would show them all blocks.
    checkpoint : path-like, optional
        Directory in which each model has a directory of checkpoints, "model-0" and so on.
    resume : bool
        Whether each fit goes on from its newest checkpoint, if it has a checkpoint.
    client, device, progress : optional
        As for :func:`fit`. All models share one display of progress.

    Returns
    -------
    ModelComparison
        A :class:`FitResult` for each model, by position or name; prints as a table.

    Raises
    ------
    InputError, InputTypeError, ModelError
        As :func:`fit`, with the name of the model in the message. The other fits end, too. Also if
        `p0`, `bounds`, `fixed` or `ties` does not have an entry for each model.

    Warns
    -----
    ConvergenceWarning, CovarianceWarning, CheckpointWarning
        As :func:`fit`, with the name of the model in the message.

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np
    >>> from nlsq_dask import fit_models
    >>> def line(x, a, b):
    ...     return a + b * x
    >>> def decay(x, a, b):
    ...     return a * jnp.exp(-b * x)
    >>> x = np.linspace(0, 4, 50)
    >>> y = 2.5 * np.exp(-1.3 * x) + 0.01 * np.sin(37 * x)
    >>> comparison = fit_models([line, decay], x, y)
    >>> comparison.best_name, comparison["decay"].popt.round(1)
    ('decay', array([2.5, 1.3]))
    """
    named = _named_models(models)
    options = RunOptions(
        workflow=workflow,
        goal=goal,
        strategy=strategy,
        n_starts=n_starts,
        tolerances=given_tolerances(ftol=ftol, xtol=xtol, gtol=gtol),
        seed=checked_seed(seed),
        pilot=pilot,
        stat_tol=stat_tol,
        method=method,
        max_nfev=max_nfev,
        x_scale="jac",
        memory_limit_gb=memory_limit_gb,
        client=client,
        device=checked_device(device),
        cache=cache,
        collapse=collapse,
        retries=checked_retries(retries),
        on_error=on_error,
    )
    inputs = InputOptions(
        sigma=sigma,
        absolute_sigma=absolute_sigma,
        mask=mask,
        nan_policy=nan_policy,
        fill_value=fill_value,
        decode=decode,
        storage_options=storage_options,
        data=data,
        time_unit=time_unit,
        missing_chunks=missing_chunks,
        checkpoint=checkpoint,
        dim=dim,
        loss=loss,
        f_scale=f_scale,
    )
    if resume and checkpoint is None:
        raise _errors.resume_without_checkpoint()
    own = {"p0": p0, "bounds": bounds, "fixed": fixed, "ties": ties}
    per_model = {argument: _per_model(argument, own[argument], list(named)) for argument in own}
    with Progress(faces_of(checked_progress(progress))) as watched:
        jobs = prepare_models(named, x, y, per_model, inputs, options)
        fits, n_passes = run_models(jobs, checkpoint, resume, watched)
    return ModelComparison(results_of(fits), n_passes)


def _named_models(models: Any) -> dict[str, Model]:
    """Models by name; functions without a given name are named for themselves."""
    if isinstance(models, Mapping):
        named = dict(models)
        if not all(isinstance(name, str) for name in named):
            raise _errors.models_form(models)
    elif isinstance(models, Sequence) and not isinstance(models, str):
        labels = [model_label(model) for model in models]
        counts = Counter(labels)
        names = (n if counts[n] == 1 else f"{n} [{i}]" for i, n in enumerate(labels))
        named = dict(zip(names, models, strict=True))
    else:
        raise _errors.models_form(models)
    if not named:
        raise _errors.no_models()
    return named


def _per_model(argument: str, value: Any, names: Sequence[str]) -> list[Any]:
    """The entry of each model, in order; None for a model without an entry."""
    if value is None:
        return [None] * len(names)
    if isinstance(value, Mapping):
        unknown = [repr(name) for name in value if name not in names]
        if unknown:
            raise _errors.per_model_unknown(argument, unknown, names)
        return [value.get(name) for name in names]
    listed = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
    if not listed or getattr(value, "ndim", 1) == 0:
        raise _errors.per_model_form(argument, value, names)
    if len(value) != len(names):
        raise _errors.per_model_count(argument, len(value), names)
    return list(value)
