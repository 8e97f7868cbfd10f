"""The result of a fit: its fields, report and files. Base classes have its further methods."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.results import dataset, page, report, saving
from nlsq_dask.results.blocks import BlockDiagnostics
from nlsq_dask.results.fitted_model import FittedModel
from nlsq_dask.results.lmfit_params import to_lmfit_params
from nlsq_dask.results.pictures import Pictures
from nlsq_dask.results.record import Parameter, interval_quantile

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FitResult", "Parameter"]


@dataclass(frozen=True, eq=False)
class FitResult(Pictures):
    """The result of :func:`nlsq_dask.fit`.

    Unpacks like the result of ``scipy.optimize.curve_fit``: ``popt, pcov = result``. Prints as a
    report. With p parameters:

    Attributes
    ----------
    names : tuple of str, length p
        Parameters in the model's order.
    popt : ndarray, shape (p,), float64
        Estimates.
    pcov : ndarray, shape (p, p), float64
        Covariance of the estimates: infinite if the data do not determine it, zero in the rows and
        columns of fixed parameters. For a robust loss it is :meth:`robust_pcov`.
    cost : float
        The minimised cost: half the sum of squared weighted residuals, or of their robust loss.
    chi2 : float
        Sum of squared weighted residuals, whatever the loss.
    n_points : int
        Rows that entered the fit.
    n_skipped : int
        Rows left out: masked, missing, or in blocks that were left out.
    n_free : int
        Free parameters: p less the parameters that are fixed or tied to others.
    fixed : tuple of str
        Parameters that were fixed.
    moments : Moments
        Sums over the rows, from which the statistics follow.
    grad : ndarray, shape (p,), float64
        Gradient of the cost; zero for fixed parameters.
    optimality : float
        Infinity norm of the gradient, scaled for the bounds.
    distance_to_optimum_sigma : float
        How far `popt` is from the optimum of its linearisation, in standard errors, along the
        directions that the data determine.
    active_mask : ndarray, shape (p,), int
        -1 where a lower bound is active, 1 where an upper one is, 0 elsewhere.
    method : str
        Solver: "trf", "lm" or "dogbox".
    loss : str
        "linear", or the name of the loss.
    absolute_sigma : bool
        Whether `pcov` takes the sigma as true standard deviations.
    r_factor : ndarray, shape (n_free, n_free), float64
        Upper-triangular factor of the weighted Jacobian by the free parameters.
    nfev : int
        Points at which the model was evaluated.
    njev : int
        Linearisations used.
    nit : int
        Steps accepted.
    n_passes : int
        Readings of all rows.
    n_passes_before : int
        Those of earlier runs, from whose checkpoint the fit was resumed. If these are all passes,
        the checkpoint was of a finished fit: this run only compared a few blocks with it.
    status : Status
        Why the fit ended, numbered as in ``scipy.optimize.least_squares`` from -2 to 4.
    scipy_status : Status or None
        The first of SciPy's criteria, 1 to 4, that was met: SciPy would have ended there. None if
        no criterion was met.
    undetermined : tuple of str
        Parameters that the data do not determine: other values of them fit as well.
    strategy : str
        "standard", "chunked" or "streaming".
    workflow : str or None
        Name of the preset, if one was passed.
    budget : MemoryBudget
        Memory by which the strategy was chosen, in GB.
    tolerances : dict
        "ftol", "xtol", "gtol" and "stat_tol" of the fit.
    structure : {"single", "stacked", "tuple"}
        How the model takes its coordinates.
    n_coords : int
        Number of coordinates.
    pilot : PilotRecord or None
        Outcome of the pilot fit, which is the fit of a sample before the first pass.
    starts : tuple of Start
        End of the search from each starting point; empty for a single start.
    checkpoint : str or None
        Directory of the checkpoints.
    history : tuple of IterationRecord
        One entry for each evaluation.
    n_differenced : int
        Rows with a finite value but without a finite derivative, for which a difference of two
        values was used. The largest number at any point that the search moved to.
    bounds : ndarray, shape (p, 2), float64, or None
        Lower and upper bounds of the parameters; None in results of earlier releases.
    sandwich : bool
        Whether `pcov` is the sandwich of a robust loss; see :meth:`robust_pcov`.
    decoded : tuple of str
        Arguments whose stored numbers became other values, each with the attributes that say so.
    param_units : dict of str
        Units of the parameters, by name, where `p0` had units.
    data_units : dict of str
        Units of "y" and of the coordinates, "x" or "x[i]", where the arrays had units.
    n_distinct : int
        Distinct coordinates to whose means the rows were collapsed; 0 if they were not. What is no
        function of the means (`mae`, :meth:`robust_pcov`, histograms) reads the data once more.
    times : tuple of (TimeAxis or None)
        For each coordinate, unit and origin of the numbers that took the place of its times; None
        for a coordinate without times. As text: ``"s since 2020-01-01T00:00:00"``.
    blocks_omitted : tuple of tuple of int
        Blocks that were left out by ``on_error="omit"`` or ``missing_chunks="omit"``, by their
        index in the chunk grid of the rows. Their number is ``n_blocks_omitted``.
    vector_bits : int
        Bits of the vectors of a CPU for which the kernels were compiled: 512 if this process and
        all workers had AVX-512 when the fit began, else 256. The last bits depend on it.
    fitted : FittedModel or None
        The model and its data, for numbers that are computed on demand. Files and pickles do not
        contain it.
    blocks : BlockDiagnostics or None
        What :meth:`block_diagnostics` returns. Files do not contain it.
    """

    fitted: FittedModel | None = field(default=None, repr=False)
    blocks: BlockDiagnostics | None = field(default=None, repr=False)

    @property
    def mae(self) -> float:
        """Mean absolute residual ``Σ |y - f| / n``, unweighted, in y's units.

        It is no function of the means of collapsed rows: it then reads the data once, and is NaN
        without data.
        """
        return super().mae if self.n_distinct == 0 or self.fitted is None else self._mae_of_rows

    def summary(self) -> str:
        """The full report: estimates with intervals, statistics, correlations, cost of the fit.

        If :meth:`profile` or :meth:`confidence_intervals` have computed profiles, the report names
        the intervals of 95 % that differ from the symmetric ones by more than a tenth of the
        half-width. The report computes no profiles itself, as they need the data.
        """
        quantile = interval_quantile(report.LEVEL, self.dof, known_scale=self.absolute_sigma)
        return report.full_report(self, self._known_intervals(quantile))

    def to_dict(self) -> dict[str, Any]:
        """All fields but `fitted`, in plain JSON types.

        Returns
        -------
        dict
            Values by field name. Numbers that are not finite are the text "inf", "-inf" or "nan".
            The status is its number.
        """
        return saving.to_fields(self)

    def to_dataset(self) -> xr.Dataset:
        """The estimates, their errors and covariance, statistics and provenance, for xarray.

        Needs xarray. Writing to Zarr or NetCDF and reading gives an identical dataset.

        Returns
        -------
        xarray.Dataset
            ``curvefit_coefficients`` (param), ``curvefit_covariance`` (cov_i, cov_j), as
            ``xarray.DataArray.curvefit`` names them; ``standard_errors`` (param);
            ``confidence_95`` and ``bounds`` (param, end); the statistics under their names here,
            without a dimension; ``mae`` is NaN where it would take a reading of the data. The
            attributes tell how the fit was run and how it ended.

        Raises
        ------
        MissingLibraryError
            If xarray is not installed.
        """
        return dataset.to_dataset(self)

    def to_lmfit_params(self) -> Any:
        """The estimates as parameters of lmfit. Needs lmfit.

        Returns
        -------
        lmfit.Parameters
            With values, standard errors, bounds and correlations; fixed parameters do not vary.
            Where the fit took lmfit.Parameters of a model of lmfit, they have their expressions,
            also the derived ones, such as the width of a peak, with standard errors.

        Raises
        ------
        MissingLibraryError
            If lmfit is not installed.
        """
        made = None if self.fitted is None else self.fitted.provenance
        return to_lmfit_params(self, getattr(made and made.model, "expressions", {}))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result to a JSON file, without model and data.

        The size of the file depends on the number of parameters and evaluations, and not on the
        number of rows. The file appears under its name only when it is complete. It replaces an
        existing file.

        Parameters
        ----------
        path : path-like
            The file; or, as a text, the URL of an object in a store, as for the checkpoints of
            :func:`nlsq_dask.fit`.

        Raises
        ------
        InputError
            If no file can have the name, or the store is of another kind.
        OSError
            If the file cannot be written.
        """
        saving.write(self, path)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a report of the fit: one file of HTML, readable without a network.

        It says first whether the fit converged, why it ended and what to do. Then come the
        parameters, statistics, pictures (with matplotlib), the plan beside what happened, the data,
        the search, the call of the fit with the source of the model, and versions. The pictures of
        the data read the data a few times. A result from a file has a report without these. The
        file replaces an existing file.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        InputError
            If no file can have the name.
        OSError
            If the file cannot be written.
        """
        page.write(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, model: Callable[..., Any] | None = None) -> Self:
        """Read a result that :meth:`save` wrote, to the same bits.

        Parameters
        ----------
        path : path-like
            The file, or the URL of an object.
        model : callable, optional
            The model of the fit, ``model(x, *params)``, for :meth:`predict` and the intervals at
            given x. Methods that need the data work only with the result that the fit returned.

        Returns
        -------
        FitResult

        Raises
        ------
        InputError
            If the file holds something else, is damaged, or was written by a later release.
        ModelError
            If `model` does not take the parameters of the result, in their order.
        OSError
            If the file cannot be read.

        Examples
        --------
        >>> result = FitResult.load("decay.json", model=decay)  # doctest: +SKIP
        >>> lower, upper = result.confidence_band(x)  # doctest: +SKIP
        """
        result = cls(**saving.read(path))
        if model is None:
            return result
        fitted = FittedModel.of_model(
            model,
            result.names,
            result.structure,
            result.n_coords,
            result.popt,
            result.fixed,
            result.data_units,
        )
        return replace(result, fitted=replace(fitted, times=result.times))

    def __iter__(self) -> Iterator[FloatArray]:
        yield self.popt
        yield self.pcov

    def __str__(self) -> str:
        return report.short_report(self)

    def _repr_html_(self) -> str:
        return report.html_report(self)

    def __getstate__(self) -> dict[str, Any]:
        # Leave out the data, for their size, and a model that cannot be pickled.
        return {**vars(self), "fitted": self.fitted and self.fitted.without_data()}

    @cached_property
    def _mae_of_rows(self) -> float:
        return self._model("mae").abs_residuals(self.popt) / self.n_points
