"""Results of linear least squares in closed form: what statistics are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nlsq_dask import Status
from nlsq_dask.core.memory_budget import MemoryBudget
from nlsq_dask.core.normal_equations import Moments
from nlsq_dask.results.result import FitResult


@dataclass(frozen=True)
class DenseModel:
    """What a result asks of a fitted model, for ``f = A @ params`` with all rows at hand."""

    design: np.ndarray
    y: np.ndarray
    sigma: np.ndarray

    def values(self, params, x=None):
        return (self.design if x is None else x) @ params

    def standard_errors(self, params, pcov, x=None):
        rows = self.design if x is None else x
        return np.sqrt(np.einsum("ni,ij,nj->n", rows, pcov, rows))

    def residuals(self, params):
        return self.y - self.values(params)

    def score_products(self, params):
        scores = self.design * (self.residuals(params) / self.sigma**2)[:, None]
        return scores.T @ scores


def linear_result(design, y, sigma=None, *, absolute_sigma=False):
    """Fit ``y = design @ params`` by NumPy's QR."""
    sigma = np.ones(len(y)) if sigma is None else sigma
    q, r = np.linalg.qr(design / sigma[:, None])
    popt = np.linalg.solve(r, q.T @ (y / sigma))
    residuals = y - design @ popt
    chi2 = float(np.sum((residuals / sigma) ** 2))
    n, k = design.shape
    inverse = np.linalg.inv(r)
    mean = np.average(y, weights=sigma**-2.0)
    return FitResult(
        names=tuple("abcdefgh"[:k]),
        popt=popt,
        pcov=inverse @ inverse.T * (1.0 if absolute_sigma else chi2 / (n - k)),
        cost=0.5 * chi2,
        chi2=chi2,
        n_points=n,
        n_skipped=0,
        n_free=k,
        fixed=(),
        moments=Moments(
            float(np.sum(np.abs(residuals))),
            float(np.sum(residuals**2)),
            float(np.sum(sigma**-2.0)),
            float(mean),
            float(np.sum(((y - mean) / sigma) ** 2)),
            float(np.sum(sigma**2)),
        ),
        grad=np.zeros(k),
        optimality=0.0,
        distance_to_optimum_sigma=0.0,
        active_mask=np.zeros(k, np.int64),
        method="trf",
        loss="linear",
        absolute_sigma=absolute_sigma,
        r_factor=r,
        nfev=2,
        njev=2,
        nit=1,
        n_passes=2,
        status=Status.GRADIENT,
        strategy="standard",
        workflow=None,
        budget=MemoryBudget(
            available_gb=1.0, threshold_gb=0.75, data_gb=0.1, jacobian_gb=0.1, peak_gb=0.3
        ),
        tolerances={"ftol": 1e-8, "xtol": None, "gtol": 1e-8},
        structure="single",
        n_coords=1,
        starts=(),
        pilot=None,
        checkpoint=None,
        history=(),
        fitted=DenseModel(design, y, sigma),
    )
