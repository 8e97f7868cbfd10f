"""The result of a fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core import statistics
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.results import dataset, page, report, saving
from nlsq_dask.results.blocks import BlockDiagnostics
from nlsq_dask.results.fitted_model import FittedModel
from nlsq_dask.results.lmfit_params import to_lmfit_params
from nlsq_dask.results.pictures import Pictures
from nlsq_dask.results.profile import Profile
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
        Rows left out: masked or missing.
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
    fitted : FittedModel or None
        The model and its data, for numbers that are computed on demand. Files and pickles do not
        contain it.
    blocks : BlockDiagnostics or None
        What :meth:`block_diagnostics` returns. Files do not contain it.
    """

    fitted: FittedModel | None = field(default=None, repr=False)
    blocks: BlockDiagnostics | None = field(default=None, repr=False)

    def confidence_intervals(
        self, level: float = 0.95, method: Literal["symmetric", "profile"] = "symmetric"
    ) -> FloatArray:
        """Confidence intervals of the parameters, ``popt ± t perr`` or by profiles.

        t is the quantile of Student's distribution with `dof` degrees of freedom. If
        `absolute_sigma`, no variance is estimated, and t is the quantile of the normal
        distribution. The symmetric intervals assume that the model is linear within a few standard
        errors of the answer (Seber & Wild, "Nonlinear Regression", 1989, section 5.1). At an active
        bound the interval ends at the bound, and is one-sided.

        An interval by profile holds the values at which the sum of squares, with the other
        parameters fitted again, rises by at most t² times the variance of the rows (Bates & Watts,
        "Nonlinear Regression Analysis and Its Applications", 1988, section 6.1), as in
        ``lmfit.conf_interval``. Such intervals need not be symmetric, and do not depend on how the
        model is parametrised. They take some sixteen fits for each parameter, which share a few
        readings of the data.

        Parameters
        ----------
        level : float
            Probability with which an interval covers the true value, in (0, 1).
        method : {"symmetric", "profile"}
            How the ends are computed.

        Returns
        -------
        ndarray, shape (p, 2), float64
            Lower and upper ends. They are equal for a fixed parameter, and infinite for a parameter
            that the data do not determine. Where the sum of squares does not rise so far, the end
            of an interval by profile is a bound, or infinite.

        Raises
        ------
        InputError
            If `level` is no probability in (0, 1), `method` is unknown, or there are no profiles;
            see :meth:`profile`.

        Warns
        -----
        ConvergenceWarning
            As :meth:`profile`.

        Examples
        --------
        >>> import numpy as np
        >>> from nlsq_dask import fit
        >>> x = np.arange(6.0)
        >>> result = fit(lambda x, a, b: a * x + b, x, np.array([1.1, 2.9, 5.2, 6.8, 9.1, 10.9]))
        >>> result.confidence_intervals().round(2)
        array([[1.84, 2.1 ],
               [0.69, 1.48]])
        """
        if method == "symmetric":
            return super().confidence_intervals(level)
        if method != "profile":
            raise _errors.unknown_choice("method", method, ("symmetric", "profile"))
        free = [name for name in self.names if name not in self.fixed]
        quantile = interval_quantile(level, self.dof, known_scale=self.absolute_sigma)
        made = self._profiled(free, quantile, 'confidence_intervals(method="profile")')
        ends = np.column_stack([self.popt, self.popt])
        for name in free:
            ends[self.names.index(name)] = made[name].interval(quantile)
        return ends

    def profile(self, name: str, level: float = 0.95) -> Profile:
        """Rise of the sum of squares where a parameter is held away from its estimate.

        The other parameters are fitted again at each of some sixteen values. All these fits share a
        few readings of the data (Bates & Watts, "Nonlinear Regression Analysis and Its
        Applications", 1988, section 6.1). The profile of a level is computed once.

        Parameters
        ----------
        name : str
            A parameter that is not fixed, and not tied to more than one other parameter.
        level : float
            Confidence level, in (0, 1), that the values reach on each side.

        Returns
        -------
        Profile

        Raises
        ------
        InputError
            If the result has no data; if the fit is no success, has a robust loss, no degrees of
            freedom or no residuals; if the parameter has no profile; if a value has a lower cost
            than the fit; or if `level` is no probability in (0, 1).

        Warns
        -----
        ConvergenceWarning
            If the fit of the other parameters does not converge at some values.
        """
        quantile = interval_quantile(level, self.dof, known_scale=self.absolute_sigma)
        return self._profiled([name], quantile, "profile()")[name]

    @property
    def mae(self) -> float:
        """Mean absolute residual ``Σ |y - f| / n``, unweighted, in y's units.

        It is no function of the means of collapsed rows: it then reads the data once, and is NaN
        without data.
        """
        return super().mae if self.n_distinct == 0 or self.fitted is None else self._mae_of_rows

    def block_diagnostics(self) -> BlockDiagnostics:
        """A table of the blocks: rows, residuals, and how far each moves the estimates.

        The sums are those of the last pass, so that nothing is read. With ``diagnostics=True`` in
        :func:`nlsq_dask.fit` a block is a chunk, up to 10,000 chunks. With `checkpoint`, and for
        more chunks, it is a group of neighbouring chunks.

        Returns
        -------
        BlockDiagnostics

        Raises
        ------
        InputError
            If the fit has kept no sums of blocks.
        """
        if self.blocks is None:
            raise _errors.no_block_diagnostics(self.strategy, self.n_distinct)
        return self.blocks

    def robust_pcov(self) -> FloatArray:
        """Covariance of the estimates without the assumption of equal or known variances.

        The sandwich ``n / dof · (JᵀJ)⁻¹ (Σ r² j jᵀ) (JᵀJ)⁻¹`` of weighted residuals and derivatives
        is called HC1 (MacKinnon & White, J. Econometrics 29, 1985). It is right for many
        independent rows, whatever their variances are. Each call reads the data once.

        With a robust loss it is the sandwich of the M-estimator, ``n / dof · H⁻¹ (Σ ψ² j jᵀ) H⁻¹``,
        with the derivative ψ of the loss by the residual and the second derivatives H of the cost
        (Huber & Ronchetti, "Robust Statistics", 2nd ed. 2009, section 7.6). The fit computes it
        in its last reading, and `pcov` is the same. It describes noise and not a bias: outliers on
        one side shift the estimates.

        Returns
        -------
        ndarray, shape (p, p), float64
            Covariance: zero for fixed parameters, infinite if the data do not determine the
            parameters.

        Raises
        ------
        InputError
            If the result has no model or no data, and no robust loss. Also if the result has a
            robust loss and comes from a file of an earlier release.
        """
        if self.sandwich:
            return self.pcov.copy()
        if self.loss != "linear":
            raise _errors.sandwich_not_kept(self.loss)
        model = self._model("robust_pcov()")
        scale = 1.0 if self.absolute_sigma else self.reduced_chi2
        # A perfect fit has no residuals, and its pcov is zero already.
        bread = self.pcov if scale == 0.0 else self.pcov / scale
        return statistics.sandwich(bread, model.score_products(self.popt), self.n_points, self.dof)

    def summary(self) -> str:
        """The full report: estimates with intervals, statistics, correlations, cost of the fit.

        If :meth:`profile` or :meth:`confidence_intervals` have computed profiles, the report names
        the intervals of 95 % that differ from the symmetric ones by more than a tenth of the
        half-width. The report computes no profiles itself, as they need the data.
        """
        quantile = interval_quantile(report.LEVEL, self.dof, known_scale=self.absolute_sigma)
        profiled = {
            name: made.interval(quantile)
            for (name, reach), made in sorted(self._profiles.items(), reverse=True, key=_reach)
            if reach >= quantile
        }
        return report.full_report(self, profiled)

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
        # Leave out the data, for their size, and the model: many models cannot be pickled.
        return {**vars(self), "fitted": None}

    @cached_property
    def _profiles(self) -> dict[tuple[str, float], Profile]:
        """Profiles computed so far, by name and by the quantile that they reach."""
        return {}

    @cached_property
    def _mae_of_rows(self) -> float:
        return self._model("mae").abs_residuals(self.popt) / self.n_points

    def _profiled(
        self, names: Sequence[str], quantile: float, method: str
    ) -> Mapping[str, Profile]:
        """Profiles that reach a quantile. Missing profiles are computed together."""
        known = {n: made for (n, reach), made in self._profiles.items() if reach == quantile}
        missing = [name for name in names if name not in known]
        if missing:
            profiles = self._model(method).profiles
            if profiles is None:
                raise _errors.result_without_data(method)
            made: dict[str, Profile] = profiles(self, missing, quantile)
            self._profiles.update({(name, quantile): made[name] for name in missing})
            known |= made
        return known


def _reach(entry: tuple[tuple[str, float], Profile]) -> float:
    """The quantile that a profile reaches."""
    return entry[0][1]
