"""How a fit ended: the text of its end, and warnings about its estimates."""

from __future__ import annotations

from collections.abc import Sequence

from nlsq_dask._errors.kinds import (
    ConvergenceError,
    ConvergenceWarning,
    CovarianceWarning,
    DerivativeWarning,
    LossScaleWarning,
    Status,
    join_names,
)


def end_of_fit(status: Status, undetermined: Sequence[str] = ()) -> str:
    """Why a fit ended, with the parameters that the data leave open."""
    if not undetermined:
        return status.message
    named = f"The data do not determine {join_names(undetermined)}"
    if status is Status.UNDETERMINED:
        return f"{named}: other values fit as well. Fix or bound them, or start them elsewhere."
    return f"{status.message} {named}."


def not_converged(message: str) -> ConvergenceWarning:
    return ConvergenceWarning(message)


def covariance_undetermined(names: Sequence[str] = ()) -> CovarianceWarning:
    """The Jacobian is singular, or there are too few rows."""
    if not names:
        return CovarianceWarning(
            "Covariance of the parameters could not be estimated: the data do not determine all "
            "parameters, or there are no more rows than parameters. pcov is infinite; simplify "
            "the model, or add data that depend on every parameter."
        )
    return CovarianceWarning(
        "Covariance of the parameters could not be estimated: the data do not determine "
        f"{join_names(names)}. pcov is infinite; fix or bound them, start them elsewhere, or add "
        "data that depend on every parameter."
    )


def derivatives_differenced(n_rows: int, n_points: int) -> DerivativeWarning:
    return DerivativeWarning(
        f"in {n_rows:,} of {n_points:,} rows the automatic derivatives of the model are not "
        "finite although its value is, as where a power, a root, a norm or a logarithm meets zero: "
        "differences of the model's values were taken there. To have exact "
        "ones, put a harmless number into such rows and select the value afterwards: "
        "safe = jnp.where(t > 0, t, 1.0); jnp.where(t > 0, safe**b, 0.0). Or leave the rows out "
        "with a mask."
    )


def f_scale_below_noise(loss: str, f_scale: float, noise: float) -> LossScaleWarning:
    """Most rows are outliers to a robust loss."""
    return LossScaleWarning(
        f"f_scale = {f_scale:.3g} of the loss {loss!r} is below the noise: half of the weighted "
        f"residuals are as large as with a standard deviation of {noise:.3g}. Most rows count as "
        "outliers, so that the estimates are less certain than they need be, and the search may "
        f"end in another minimum: pass f_scale from {noise:.2g} to {3 * noise:.2g}, or the noise "
        "as sigma and f_scale from 1 to 3; or check that the model follows the data."
    )


def optimum_not_found(message: str) -> ConvergenceError:
    """What curve_fit raises where fit warns."""
    return ConvergenceError(f"Optimal parameters not found: {message}")


def series_ended(n: int) -> str:
    """How the fits of so many series ended, in a few words, for a progress line."""
    return f"{n:,} series fitted"


def fit_ended(n_models: int, n_converged: int) -> str:
    """How a fit ended, in a few words, for a progress line."""
    if n_models > 1:
        return f"{n_converged} of {n_models} models converged"
    return "fit converged" if n_converged else "fit DID NOT converge"
