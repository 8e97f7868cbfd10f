"""The classes of failure, the statuses, and how values are written in messages."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from enum import IntEnum
from types import FrameType
from typing import Self

# Most names or numbers that a message lists; of more, it lists the first few and their number.
MOST_LISTED = 20
FEW_LISTED = 6

# Characters of a value that a message shows.
MOST_CHARACTERS = 240


class FitError(Exception):
    """Base class of every error raised by nlsq_dask.

    ``model`` is the name of the model in question, where several are fitted together.
    """

    model: str | None = None


class InputError(FitError, ValueError):
    """An argument has an unusable value; the message names it, the value, and the remedy."""


class InputTypeError(FitError, TypeError):
    """An argument has an unusable type; the message names it, the value, and the remedy."""


class StartNotFiniteError(InputError):
    """The sum of squares or its derivatives are not finite at the starting point.

    ``params`` are the free parameters there; None where no model was evaluated.
    """

    params: tuple[float, ...] | None = None

    @classmethod
    def at(cls, params: Iterable[float], text: str) -> Self:
        """Make the error of a starting point."""
        error = cls(text)
        error.params = tuple(map(float, params))
        return error


class StartSlopeError(StartNotFiniteError):
    """The derivatives are not finite at the starting point, `params`."""


class DataChangedError(InputError):
    """The data are not those of an earlier pass, or of the run that left a checkpoint."""


class ModelError(FitError, ValueError):
    """The model cannot be used as written."""


class NotRowWiseError(ModelError):
    """The value of the model at one row depends on other rows, so it cannot be streamed."""


class UntraceableModelError(ModelError, TypeError):
    """The model calls something that JAX cannot trace."""


class RowLoopError(UntraceableModelError):
    """The model loops over rows in Python, so that its trace would grow with the rows."""


class ConvergenceError(FitError, RuntimeError):
    """No optimum was found, and the caller asked for an exception in that case."""


class ForkError(FitError, RuntimeError):
    """The process was forked from one that had fitted before, and a fit would hang."""


class MissingLibraryError(FitError, ImportError):
    """An optional library is not installed; the message says how to install it."""


class ReadingError(FitError, OSError):
    """Data could not be read; the message names the block, its rows, the store and the cause.

    ``block`` is the index of the block in the chunk grid; None for data that no single block has.
    ``what`` names the block and the cause, in short.
    """

    block: tuple[int, ...] | None = None
    what: str = ""


class ClusterError(FitError, RuntimeError):
    """The workers of a cluster cannot go on; the message says which, why, and what helps."""


class FitWarning(UserWarning):
    """Base class of every warning given by nlsq_dask."""


class CovarianceWarning(FitWarning):
    """The data do not determine the covariance of the parameters."""


class DerivativeWarning(FitWarning):
    """Some derivatives of the model were not finite; differences replace them."""


class ConvergenceWarning(FitWarning):
    """The fit ended without meeting a convergence criterion."""


class LossScaleWarning(FitWarning):
    """The scale of a robust loss is below the noise, so that most rows count as outliers."""


class CheckpointWarning(FitWarning):
    """A checkpoint could not be written or read."""


class ClusterWarning(FitWarning):
    """The workers of a cluster may be unable to go on."""


class MissingDataWarning(FitWarning):
    """Chunks are not in the store, or blocks that could not be read were left out."""


class PrecisionWarning(FitWarning):
    """Values lose digits in the conversion to float64."""


class Status(IntEnum):
    """Why a fit ended, with the numbers of ``scipy.optimize.least_squares`` from -2 to 4.

    The numbers below -5 occur in maps of fits alone.
    """

    NOT_FITTED = -128
    BAD_INPUT = -8
    START_NOT_FINITE = -7
    TOO_FEW_ROWS = -6
    INCONSISTENT = -5
    UNDETERMINED = -4
    STALLED = -3
    CALLBACK = -2
    MAX_EVALUATIONS = 0
    GRADIENT = 1
    COST = 2
    STEP = 3
    COST_AND_STEP = 4
    STATISTICAL = 5
    ROUNDING = 6
    NEAR = 7
    KINK = 8

    @property
    def success(self) -> bool:
        """Whether the fit is at an optimum."""
        return self > 0

    @property
    def message(self) -> str:
        """Cause, and remedy if needed."""
        return _STATUS_MESSAGES[self]


_STATUS_MESSAGES = {
    Status.NOT_FITTED: "The series is not fitted yet: resume the fit that writes the store.",
    Status.BAD_INPUT: (
        "The series has infinite values, a sigma that is not positive and finite, or starting "
        "values and bounds that exclude each other: mask these rows, or correct the maps of p0, "
        "bounds, fixed or sigma."
    ),
    Status.START_NOT_FINITE: (
        "The model or its derivatives are not finite at the starting values: start elsewhere, or "
        "bound the parameters."
    ),
    Status.TOO_FEW_ROWS: (
        "The series has fewer rows that count than free parameters: fix parameters, or leave out "
        "fewer rows."
    ),
    Status.INCONSISTENT: (
        "The fit stalled where the derivatives of the model promise a lower sum of squares and its "
        "values do not keep the promise: check `jac`, and look for steps, rounding or random "
        "numbers in the model."
    ),
    Status.UNDETERMINED: (
        "The data do not determine all parameters: other values fit as well. Fix or bound those in "
        "result.undetermined, start them elsewhere, or take a model without them."
    ),
    Status.STALLED: (
        "The fit stalled before it arrived: no step lowers the sum of squares any further, though "
        "the optimum is result.distance_to_optimum_sigma standard errors away. Improve p0, write "
        "the model with less cancellation, or try another method."
    ),
    Status.CALLBACK: (
        "`callback` raised StopIteration: the result is the best point so far, from which another "
        "fit can go on with p0=result.popt."
    ),
    Status.MAX_EVALUATIONS: (
        "The maximum number of function evaluations was reached before convergence: "
        "raise max_nfev, improve p0, or loosen ftol, xtol and gtol."
    ),
    Status.GRADIENT: "`gtol` termination condition is satisfied.",
    Status.COST: "`ftol` termination condition is satisfied.",
    Status.STEP: "`xtol` termination condition is satisfied.",
    Status.COST_AND_STEP: "Both `ftol` and `xtol` termination conditions are satisfied.",
    Status.STATISTICAL: (
        "`stat_tol` and `ftol` termination conditions are satisfied: another pass would not move "
        "the estimates by a noticeable part of their standard errors."
    ),
    Status.ROUNDING: (
        "The optimum is reached as nearly as the rounding errors of the model's values allow."
    ),
    Status.NEAR: (
        "No step lowers the sum of squares any further, and the optimum is less than a tenth of a "
        "standard error away."
    ),
    Status.KINK: (
        "The optimum lies on a kink of the model, where its derivatives jump: standard errors "
        "there are rough."
    ),
}


def join_names(names: Sequence[str]) -> str:
    """Write names as a readable list, ``a, b and c``; of a long list the start and the number."""
    if len(names) > MOST_LISTED:
        return f"{', '.join(names[:FEW_LISTED])} and {len(names) - FEW_LISTED} more"
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


def values_that_are(count: int) -> str:
    """A number of values, before what the values are."""
    return "1 value that is" if count == 1 else f"{count} values that are"


def in_units(n_bytes: float) -> str:
    """Write a size with three digits, in units of powers of 1000 bytes."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        # A size that three digits round up to 1000 of a unit is written as 1 of the next unit.
        if n_bytes >= 0.9995 * 10**power:
            return f"{n_bytes / 10**power:.3g} {unit}"
    return f"{n_bytes:.0f} bytes"


def listed(params: Iterable[float]) -> str:
    """Write numbers with six digits; of a long list the start and the number."""
    values = list(params)
    few = values if len(values) <= MOST_LISTED else values[:FEW_LISTED]
    numbers = [f"{value:.6g}" for value in few]
    if len(few) < len(values):
        numbers.append(f"... {len(values)} numbers")
    return "[" + ", ".join(numbers) + "]"


def shown(value: object) -> str:
    """Write a user's value as ``repr`` does; of a long text the beginning and the end."""
    return shortened(repr(value))


def shortened(text: str) -> str:
    """Write a text; of a long text the beginning and the end."""
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[: MOST_CHARACTERS // 2]} ... {text[-MOST_CHARACTERS // 8 :]}"


def warn_caller(warning: FitWarning) -> None:
    """Warn at the line of the user that called the package, at any depth of calls."""
    package = __name__.partition(".")[0]
    level, frame = 1, sys._getframe()  # noqa: SLF001  # as the warnings module itself does
    while frame.f_back is not None and _package_of(frame) == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(warning, stacklevel=level)


def _package_of(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]
