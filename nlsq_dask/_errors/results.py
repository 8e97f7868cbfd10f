"""What can be wrong with questions to a result, and with its file."""

from __future__ import annotations

from nlsq_dask._errors.kinds import InputError, MissingLibraryError


def level_invalid(level: object) -> InputError:
    """A confidence level is not a probability."""
    return InputError(
        f"level = {level!r}: pass a probability strictly between 0 and 1, such as 0.95."
    )


def result_without_model(method: str) -> InputError:
    """A result that was read from a file or a pickle has no model to evaluate."""
    return InputError(
        f"{method} evaluates the model, which is not kept in files: load the result with its "
        "model, FitResult.load(path, model=model)."
    )


def result_without_data(method: str) -> InputError:
    """A result that was read from a file has a model, but no data."""
    return InputError(
        f"{method} reads the data of the fit, which are not kept in files: call it on the result "
        "that fit() returns, or fit again."
    )


def sandwich_not_kept(loss: str) -> InputError:
    """An earlier release had another covariance of robust losses."""
    return InputError(
        f"robust_pcov() of a fit with loss = {loss!r} is made while it reads the data, but this "
        "result comes from a release that did not make it: fit again to have it."
    )


def not_a_result_file(path: object) -> InputError:
    """A file is of something else, or its beginning is lost."""
    return InputError(
        f"{path} holds no result of a fit: pass a file that FitResult.save() wrote; if it is one, "
        "it is damaged, and must be restored or the fit repeated."
    )


def result_file_damaged(path: object, cause: object) -> InputError:
    """A result's file is truncated or changed."""
    return InputError(
        f"the result in {path} is damaged ({cause!r}): restore the file, or "
        "repeat the fit and save it again."
    )


def result_file_newer(path: object, version: object, known: int) -> InputError:
    """A result's file was written in a later form."""
    return InputError(
        f"the result in {path} is in version {version!r} of the format, but this release of "
        f"nlsq_dask reads version {known}: upgrade nlsq_dask."
    )


def plot_needs_matplotlib() -> MissingLibraryError:
    """The optional plotting library is not installed."""
    return MissingLibraryError(
        "plot() draws with matplotlib, which is not installed: pip install nlsq_dask[plot]."
    )
