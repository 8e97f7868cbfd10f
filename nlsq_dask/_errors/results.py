"""Errors of questions to a result, of its file, and of several models fitted together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from nlsq_dask._errors.kinds import (
    ConvergenceError,
    ConvergenceWarning,
    FitError,
    FitWarning,
    InputError,
    InputTypeError,
    MissingLibraryError,
    join_names,
    shortened,
    shown,
)


def level_invalid(level: object) -> InputError:
    return InputError(
        f"level = {level!r}: pass a probability strictly between 0 and 1, such as 0.95."
    )


def result_without_model(method: str) -> InputError:
    return InputError(
        f"{method} evaluates the model, which is not kept in files, nor in pickles if it cannot be "
        "pickled: write the result with save(path), and load it with its model, "
        "FitResult.load(path, model=model)."
    )


def result_without_data(method: str) -> InputError:
    return InputError(
        f"{method} reads the data of the fit, which are not kept in files and pickles: call it on "
        "the result that fit() returns, or fit again."
    )


def no_block_diagnostics(strategy: str, n_distinct: int) -> InputError:
    if n_distinct:
        return InputError(
            f"block_diagnostics(): the rows were collapsed to the means at {n_distinct:,} distinct "
            "coordinates, of many blocks each: fit with diagnostics=True and collapse=False."
        )
    if strategy != "streaming":
        return InputError(
            f"block_diagnostics() is about the chunks of streamed data, and strategy = "
            f"{strategy!r}: pass arrays of Dask or Zarr, or strategy='streaming', and "
            "diagnostics=True."
        )
    return InputError(
        "block_diagnostics() needs the sums of the blocks, which this result has not: fit with "
        "diagnostics=True, or with checkpoint=... . Files of results do not have them, and a fit "
        "that was finished before makes no pass."
    )


def sandwich_not_kept(loss: str) -> InputError:
    """An earlier release had another covariance of robust losses."""
    return InputError(
        f"robust_pcov() of a fit with loss = {loss!r} is made while it reads the data, but this "
        "result comes from a release that did not make it: fit again to have it."
    )


def profile_of_loss(loss: str) -> InputError:
    return InputError(
        f"a profile of a fit with loss = {loss!r} has no level of confidence, as the robust cost "
        "is not the likelihood of normal residuals: use the symmetric intervals, "
        "confidence_intervals(method=\"symmetric\"), or fit with loss = 'linear'."
    )


def profile_without_success(message: str) -> InputError:
    return InputError(
        f"a profile starts from the least sum of squares, which this fit did not find ({message}): "
        "make the fit a success first, by other starting values or by fixing parameters."
    )


def profile_without_freedom(n_points: int, n_free: int) -> InputError:
    return InputError(
        f"a profile is measured in units of the residuals' variance, but {n_points} rows and "
        f"{n_free} free parameters leave no degrees of freedom to estimate it: add rows, fix "
        "parameters, or pass sigma with absolute_sigma=True."
    )


def profile_without_noise() -> InputError:
    """A perfect fit has residuals of zero, or of rounding."""
    return InputError(
        "a profile is measured in units of the residuals' variance, which is 0 or rounding as the "
        "model goes through all rows: pass the true sigma with absolute_sigma=True."
    )


def profile_of_fixed(name: str) -> InputError:
    return InputError(
        f"{name} is fixed, so that it has no profile: fit without {name} in fixed, or profile "
        "another parameter."
    )


def profile_of_combination(name: str) -> InputError:
    return InputError(
        f"{name} is tied to several free parameters, so that it has no profile of its own: profile "
        f"these one by one, result.profile(name), or write the model with {name} as a parameter."
    )


def profile_below_fit(name: str, cost: float, least: float, params: Iterable[float]) -> InputError:
    return InputError(
        f"the profile of {name} came to a cost of {cost:.8g}, below {least:.8g} of the fit, which "
        "is therefore not the least: fit again with p0 = "
        f"[{', '.join(f'{float(value):.8g}' for value in params)}]."
    )


def profile_not_converged(name: str, n_short: int, n_points: int) -> ConvergenceWarning:
    return ConvergenceWarning(
        f"{n_short} of {n_points} points of the profile of {name} ended at no optimum of the other "
        "parameters, so that the interval may be too narrow: fit with a larger max_nfev, or bound "
        "the parameters."
    )


def not_a_result_file(path: object) -> InputError:
    return InputError(
        f"{path} holds no result of a fit: pass a file that FitResult.save() wrote; if it is one, "
        "it is damaged, and must be restored or the fit repeated."
    )


def result_file_damaged(path: object, cause: object) -> InputError:
    return InputError(
        f"the result in {path} is damaged ({shortened(str(cause))}): restore the file, or repeat "
        "the fit and save it again."
    )


def result_file_newer(path: object, version: object, known: int) -> InputError:
    return InputError(
        f"the result in {path} is in version {shown(version)} of the format, but this release of "
        f"nlsq_dask reads version {known}: upgrade nlsq_dask."
    )


def plot_needs_matplotlib(method: str) -> MissingLibraryError:
    return MissingLibraryError(
        f"{method} draws with matplotlib, which is not installed: pip install nlsq_dask[plot]."
    )


def axes_form(method: str, ax: object) -> InputTypeError:
    return InputTypeError(
        f"ax = {shown(ax)} of {method} has to be matplotlib axes, or a sequence of axes, as "
        "plt.subplots() returns them."
    )


def axes_count(method: str, count: int, most: int) -> InputError:
    return InputError(f"ax of {method} has {count} axes: pass 1 to {most}.")


def rows_have_no_dims() -> InputError:
    return InputError(
        'dims and at are for images, and this picture is by rows: pass kind="images", or leave '
        "dims and at out."
    )


def images_need_dimensions(ndim: int) -> InputError:
    return InputError(
        f"images need data of two or more dimensions, and y has {ndim}: pass y in the shape of the "
        'image to fit(), or draw rows, kind="rows".'
    )


def image_dims_form(dims: Sequence[object], names: Sequence[object]) -> InputError:
    return InputError(
        f"dims = {shown(dims)} are no two dimensions: pass two of {_listed(names)}, that of the "
        "ordinate first."
    )


def no_such_dimension(dim: object, names: Sequence[object]) -> InputError:
    return InputError(f"the data have no dimension {shown(dim)}: they have {_listed(names)}.")


def no_such_index(dim: object, index: object, length: int, *, drawn: bool = False) -> InputError:
    if drawn:
        return InputError(
            f"at has the dimension {shown(dim)}, which is an axis of the images: choose other axes "
            "with dims, or cut another dimension."
        )
    return InputError(
        f"at = {{{shown(dim)}: {shown(index)}}} is no index of a dimension of length {length}: "
        f"pass a whole number from 0 to {length - 1}."
    )


def slice_not_row_wise() -> InputError:
    return InputError(
        "at cuts the data, and the value of this model at one row depends on other rows: leave at "
        "out, so that the images are means over all rows."
    )


#: What the numbers of a fit without success mean.
NO_OPTIMUM = (
    "The numbers are those of the best point so far, which is no optimum: its standard errors and "
    "intervals say nothing about the parameters."
)


def _listed(names: Sequence[object]) -> str:
    return join_names([repr(name) for name in names])


def dataset_needs_xarray() -> MissingLibraryError:
    return MissingLibraryError(
        "to_dataset() returns an xarray.Dataset, and xarray is not installed: pip install "
        "nlsq_dask[xarray]. to_dict() and save() need no other library."
    )


ProblemT = TypeVar("ProblemT", bound=FitError | FitWarning)


# Several models fitted together.


def of_model(name: str, problem: ProblemT) -> ProblemT:
    """An error or a warning of one of several models, with the model's name."""
    named = type(problem)(f"model {name!r}: {problem}")
    named.__dict__.update(problem.__dict__, model=name)
    return named


def no_model_arrived(names: Sequence[str]) -> ConvergenceError:
    return ConvergenceError(
        f"no fit of {join_names(names)} is a success, so that no model is the best: see the "
        "message of each result, and improve the starting values."
    )


def models_form(value: object) -> InputTypeError:
    return InputTypeError(
        f"models = {shown(value)}: pass a list of models, or a dictionary {{name: model}} with "
        "names that are strings. A single model is fitted by fit()."
    )


def no_models() -> InputError:
    return InputError("models is empty: pass at least one model, model(x, a, b, ...).")


def per_model_form(argument: str, value: object, names: Sequence[str]) -> InputTypeError:
    return InputTypeError(
        f"{argument} = {shown(value)} is not one value a model: pass a list of {len(names)} in the "
        f"order of the models, or a dictionary {{{names[0]!r}: ...}} by their names, in which "
        "models may be left out."
    )


def per_model_count(argument: str, count: int, names: Sequence[str]) -> InputError:
    return InputError(
        f"{argument} has {count} entries for {len(names)} models, {join_names(names)}: pass one a "
        "model, in their order (None for the default), or a dictionary by their names."
    )


def per_model_unknown(argument: str, unknown: Sequence[str], names: Sequence[str]) -> InputError:
    return InputError(
        f"{argument} has entries for {join_names(unknown)}, but the models are "
        f"{join_names(names)}: pass a dictionary {{model: {argument} of the model}}, or a list in "
        "the order of the models."
    )


def no_such_model(name: object, names: Sequence[str]) -> KeyError:
    return KeyError(f"there is no model {name!r}: the models are {join_names(names)}")
