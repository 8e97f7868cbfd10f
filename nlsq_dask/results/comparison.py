"""Several models of the same data, side by side.

Models are compared by Akaike's information criterion. Let Δ be the AIC of a model less the least
AIC. The weight of the model is ``exp(-Δ/2) / Σ exp(-Δ/2)``: the probability, among these models,
that the model predicts new data best (Burnham & Anderson, "Model Selection and Multimodel
Inference", 2nd ed. 2002, sections 2.6 and 2.9).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.results.result import FitResult
from nlsq_dask.results.tables import aligned, html_table

HEADER = (
    "model",
    "parameters",
    "chi2",
    "reduced chi2",
    "AIC",
    "ΔAIC",
    "weight",
    "BIC",
    "converged",
)


class ModelComparison(Sequence[FitResult]):
    """The result of :func:`nlsq_dask.fit_models`: a result for each model, in the order given.

    Index it by position or by name. It prints as a table with the best model first.

    Parameters
    ----------
    results : mapping of FitResult
        By the models' names.
    n_passes : int
        Readings of all rows, for all fits together.

    Attributes
    ----------
    names : tuple of str
        The models, in the order given.
    n_passes : int
        Readings of all rows, for all fits together: those of the longest fit, and one more if a
        guess of a start needs all rows.
    """

    def __init__(self, results: Mapping[str, FitResult], n_passes: int) -> None:
        self._results = tuple(results.values())
        self.names = tuple(results)
        self.n_passes = n_passes

    @overload
    def __getitem__(self, index: int | str) -> FitResult: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[FitResult, ...]: ...
    def __getitem__(self, index: int | str | slice) -> FitResult | tuple[FitResult, ...]:
        if not isinstance(index, str):
            return self._results[index]
        if index not in self.names:
            raise _errors.no_such_model(index, self.names)
        return self._results[self.names.index(index)]

    def __len__(self) -> int:
        return len(self._results)

    def items(self) -> Iterator[tuple[str, FitResult]]:
        """Names and results, in the order given."""
        return zip(self.names, self._results, strict=True)

    @property
    def best(self) -> FitResult:
        """The result with the least AIC; of several, the result with the fewest parameters.

        Only successful fits are compared.

        Raises
        ------
        ConvergenceError
            If no fit is a success.
        """
        return self._results[self._best]

    @property
    def best_name(self) -> str:
        """Name of the best model."""
        return self.names[self._best]

    @property
    def delta_aic(self) -> FloatArray:
        """AIC of each model less the least one, shape (k,), float64, in the order given.

        NaN for a fit that is no success.
        """
        aic = np.array([r.aic if r.success else np.nan for r in self._results])
        least = np.full_like(aic, np.fmin.reduce(aic))
        # A perfect fit has the AIC -inf. Its difference from itself is 0, not NaN.
        delta: FloatArray = np.subtract(aic, least, out=np.zeros_like(aic), where=aic != least)
        return delta

    @property
    def akaike_weights(self) -> FloatArray:
        """Akaike weights ``exp(-Δ/2) / Σ exp(-Δ/2)``, shape (k,), float64, in the order given.

        NaN for a fit that is no success.
        """
        likelihoods = np.exp(-0.5 * self.delta_aic)
        weights: FloatArray = likelihoods / np.nansum(likelihoods)
        return weights

    def table(self) -> str:
        """The models as lines of text, the best first and marked by a star."""
        lines = aligned([HEADER, *self._rows()])
        best = "* " if any(result.success for result in self._results) else "  "
        stars = ["  ", best, *["  "] * (len(self) - 1)]
        return "\n".join([self._title(), *map(str.__add__, stars, lines)])

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        best = self.best_name if any(result.success for result in self._results) else "none"
        return f"ModelComparison({', '.join(self.names)}; best: {best})"

    def _repr_html_(self) -> str:
        return html_table(self._rows(), HEADER, caption=self._title(), titled=False)

    def _title(self) -> str:
        models = "1 model" if len(self) == 1 else f"{len(self)} models"
        readings = "1 reading" if self.n_passes == 1 else f"{self.n_passes} readings"
        return f"{models} of {self[0].n_points:,} rows, fitted in {readings}"

    @property
    def _best(self) -> int:
        """Position of the best model."""
        best = self._ranking[0]
        if not self._results[best].success:
            raise _errors.no_model_arrived(self.names)
        return best

    @property
    def _ranking(self) -> list[int]:
        """Positions of the models, the best first, fits without success last."""
        results = self._results
        return sorted(
            range(len(self)),
            key=lambda i: (not results[i].success, results[i].aic, results[i].n_free),
        )

    def _rows(self) -> Iterator[tuple[str, ...]]:
        deltas, weights = self.delta_aic, self.akaike_weights
        for i in self._ranking:
            result = self._results[i]
            yield (
                self.names[i],
                str(result.n_free),
                f"{result.chi2:.6g}",
                f"{result.reduced_chi2:.6g}",
                f"{result.aic:.8g}",
                f"{deltas[i]:.4g}",
                f"{weights[i]:.3g}",
                f"{result.bic:.8g}",
                "yes" if result.success else "NO",
            )
