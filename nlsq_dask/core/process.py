"""Whether this process was forked from one that had fitted before."""

from __future__ import annotations

import os

from nlsq_dask import _errors

_fitted_in: set[int] = set()  # processes


def check_not_forked() -> None:
    """Refuse to fit in a process that was forked after a fit, and note that this process fits.

    The threads of JAX, of Dask and of Zarr are not in the forked process, which has their locks as
    they were: it would hang.

    Raises
    ------
    ForkError
        If the process was forked after a fit.
    """
    if _fitted_in and os.getpid() not in _fitted_in:
        raise _errors.forked_after_fit()
    _fitted_in.add(os.getpid())
