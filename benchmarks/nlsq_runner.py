"""Fits with the package NLSQ, timed: run by ``nlsq_reference.py`` in an environment that has it.

Prints one JSON object: seconds of the first fit and of each further one, and the parameters found.
"""

from __future__ import annotations

import json
import logging
import sys
import time

import jax.numpy as jnp
import numpy as np
from nlsq import CurveFit, __version__

from benchmarks import problems


def run(name: str, rows: int, repeat: int) -> dict[str, object]:
    """Fit one problem of ``problems.py`` with one fitter, the first time and ``repeat`` times."""
    problem: problems.Problem = getattr(problems, name)
    x, y = problem.data(rows)
    model = problem.model(jnp)
    fitter = CurveFit()
    seconds = []
    for _ in range(1 + repeat):
        began = time.perf_counter()
        popt, _ = fitter.curve_fit(
            model, x, y, p0=np.array(problem.start), ftol=1e-8, xtol=1e-8, gtol=1e-8
        )
        seconds.append(time.perf_counter() - began)
    return {
        "version": __version__,
        "cold": seconds[0],
        "warm": seconds[1:],
        "popt": np.asarray(popt).tolist(),
    }


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # it reports every iteration
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
