"""SciPy's face of :func:`nlsq_dask.fit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask._fit import fit
from nlsq_dask.core.normal_equations import FloatArray

# Of SciPy's methods there is one; "auto" is its name where the workflow decides the rest.
METHODS = ("trf", "auto")


def curve_fit(
    f: Callable[..., Any],
    xdata: Any,
    ydata: Any,
    p0: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    check_finite: bool = True,  # noqa: ARG001
    bounds: Any = (-np.inf, np.inf),
    method: str | None = None,
    **kwargs: Any,
) -> tuple[FloatArray, FloatArray]:
    """Fit a model as ``scipy.optimize.curve_fit`` does, to data of any size.

    Parameters
    ----------
    f : callable
        ``f(x, a, b, ...)``; see :func:`nlsq_dask.fit`.
    xdata, ydata : array_like
        Coordinates and observations, in any of the forms that :func:`nlsq_dask.fit` takes.
    p0 : sequence or dict, optional
        Starting values.
    sigma : array_like, optional
        Standard deviations of ``ydata``.
    absolute_sigma : bool
        Whether ``sigma`` is taken as it is for the covariance.
    check_finite : bool
        Kept for SciPy's signature. A fit never goes on from a NaN: it would make the sum of squares
        NaN, and that is an error either way.
    bounds : pair, dict or scipy.optimize.Bounds
        Bounds of the parameters.
    method : {"trf", "auto"}, optional
        "trf", or None: the trust-region-reflective method with SciPy's tolerances. "auto": the
        same with ``workflow="auto"``, whose tolerances depend on the number of rows.
    **kwargs
        Further arguments of :func:`nlsq_dask.fit`, such as ``ftol``, ``max_nfev`` or ``client``.

    Returns
    -------
    popt : ndarray, shape (p,), float64
        Estimates.
    pcov : ndarray, shape (p, p), float64
        Covariance of the estimates.

    Raises
    ------
    ConvergenceError
        If no optimum was found; also a ``RuntimeError``, as in SciPy.
    InputError, InputTypeError, ModelError
        As :func:`nlsq_dask.fit`.

    Examples
    --------
    >>> import jax.numpy as jnp, numpy as np
    >>> from nlsq_dask import curve_fit
    >>> x = np.linspace(0, 1, 20)
    >>> popt, pcov = curve_fit(lambda x, a, b: a * x + b, x, 3 * x + 1)
    >>> popt.round(6)
    array([3., 1.])
    """
    if method not in (None, *METHODS):
        raise _errors.unknown_choice("method", method, METHODS)
    if method == "auto":
        kwargs.setdefault("workflow", "auto")
    with _errors.quiet_convergence():
        result = fit(
            f,
            xdata,
            ydata,
            p0,
            sigma=sigma,
            absolute_sigma=absolute_sigma,
            bounds=bounds,
            **kwargs,
        )
    if not result.success:
        raise _errors.optimum_not_found(result.message)
    return result.popt, result.pcov
