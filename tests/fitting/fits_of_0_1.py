"""Fits whose files version 0.1 wrote into tests/data/v0.1.

``python -c "import fits_of_0_1; fits_of_0_1.write(DIRECTORY)"`` with version 0.1 on the path writes
them again. The identity of a model holds its bytecode, which other versions of Python make in
another way.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import dask.array as da
import jax.numpy as jnp
import numpy as np

from nlsq_dask import fit

#: Version of Python that wrote the files.
PYTHON = (3, 11)

#: Tolerances by which the fit arrives.
ACCURATE = {"ftol": 1e-8, "xtol": 1e-8, "gtol": 1e-8}

#: Evaluations after which the unfinished fit was stopped.
STOPPED_AFTER = 1


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


X = np.linspace(0, 4, 400)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.01 * np.sin(31 * X)

LONG_X = np.linspace(0, 4, 40_000)
LONG_Y = 2.5 * np.exp(-1.3 * LONG_X) + 0.5 + 0.05 * np.sin(31e3 * LONG_X**2)
LONG_Y[::50] += 3.0


def finished(checkpoint=None, **changes):
    """A fit that `xtol` ends before it arrives."""
    arguments = {"ftol": None, "xtol": 0.2, "gtol": None, "checkpoint": checkpoint}
    return fit(decay, X, Y, p0=[1, 1, 0], **{**arguments, **changes})


def unfinished(checkpoint=None, **changes):
    """A fit of streamed rows with a robust loss, from the answer of a pilot."""
    x, y = (da.from_array(values, chunks=2_000) for values in (LONG_X, LONG_Y))
    arguments = {"loss": "cauchy", "f_scale": 0.1, "pilot": True, "ftol": 1e-15, "stat_tol": None}
    return fit(decay, x, y, p0=[1, 1, 0], checkpoint=checkpoint, **{**arguments, **changes})


def stop(intermediate_result):
    """Stop after some evaluations."""
    if intermediate_result.nfev >= STOPPED_AFTER:
        raise StopIteration


def write(directory):
    """Write the files with the version of nlsq_dask that is on the path."""
    directory = Path(directory)
    finished().save(directory / "result.json")
    finished(directory / "new")
    _keep_newest(directory / "new", directory / "finished")
    finished(directory / "new", **ACCURATE)
    _keep_newest(directory / "new", directory / "arrived")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it does not arrive
        unfinished(directory / "new", callback=stop)
    _keep_newest(directory / "new", directory / "unfinished")


def _keep_newest(written, kept):
    kept.mkdir(exist_ok=True)
    newest = max(written.glob("checkpoint-*.json"))
    newest.rename(kept / "checkpoint-00000001.json")
    shutil.rmtree(written)
