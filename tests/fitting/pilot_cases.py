"""Fits with a pilot, and how far their answers are from those without."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import dask.array as da
import jax.numpy as jnp
import numpy as np

from nlsq_dask import fit
from nlsq_dask.engines.dask.sampling import sample_blocks
from nlsq_dask.fitting.prepare import STAT_TOL
from nlsq_dask.io.chunks import spread_blocks
from tests.support.problems import computed

CHUNK = 500
#: Criteria at which a fit stands at the optimum, for all that these tests ask.
CONVERGED: dict[str, Any] = {"stat_tol": 1e-6, "ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14}
#: Steps are as Gauss and Newton have them, and what they promise is true to this factor.
CURVATURE = 2.0


def gauss(x, a, m, s, c):
    return a * jnp.exp(-0.5 * ((x - m) / s) ** 2) + c


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def two_decays(x, a, b, c, d):
    return a * jnp.exp(-b * x) + c * jnp.exp(-d * x)


def wave(x, a, w, c):
    return a * jnp.sin(w * x) + c


@dataclass
class Case:
    """Data in chunks, and the arguments that fit them."""

    model: Any
    x: Any
    y: np.ndarray
    p0: Any
    options: dict[str, Any] = field(default_factory=dict)
    chunk: int = CHUNK

    def fit(self, pilot=True, **options):
        x, y, given_options = self.chunked()
        with warnings.catch_warnings():  # a fit that is compared need not end by itself
            warnings.simplefilter("error")
            return fit(self.model, x, y, self.p0, pilot=pilot, **{**given_options, **options})

    def chunked(self):
        options = dict(self.options)
        for name in ("sigma", "mask"):
            if name in options:
                options[name] = da.from_array(options[name], chunks=self.chunk)
        x, y = (da.from_array(a, chunks=self.chunk) for a in (self.x, self.y))
        return x, y, options


def rng():
    return np.random.default_rng(0)


def peak_case(n_chunks=100, noise=0.3, **options):
    """A peak that many chunks see, in the order of x."""
    x = np.linspace(0, 10, n_chunks * CHUNK)
    y = computed(gauss, x, 3, 4, 0.7, 0.5) + noise * rng().normal(size=x.size)
    return Case(gauss, x, y, [4, 5, 0.5, 0.7], options)


def sampled(n_chunks):
    """Which of the chunks of 1-D data the pilot reads."""
    return spread_blocks([n_chunks], sample_blocks(n_chunks))


def apart(result, reference):
    """How far two answers are from each other, in standard errors: ``‖R (θ - θ*)‖ / s``."""
    free = [i for i, name in enumerate(reference.names) if name not in reference.fixed]
    moved = (result.popt - reference.popt)[free]
    scale = 1.0 if reference.absolute_sigma else np.sqrt(reference.reduced_chi2)
    return float(np.linalg.norm(reference.r_factor @ moved) / scale)


def assert_same_answer(result, reference, tolerance=STAT_TOL):
    assert result.success
    assert reference.success
    assert apart(result, reference) < CURVATURE * tolerance
    np.testing.assert_allclose(result.cost, reference.cost, rtol=1e-7)
    np.testing.assert_allclose(result.perr, reference.perr, rtol=1e-3)
