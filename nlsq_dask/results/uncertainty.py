"""How certain the estimates are: intervals, profiles, robust covariance, and shifts by blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core import statistics
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.results.blocks import BlockDiagnostics
from nlsq_dask.results.predictions import Predictions
from nlsq_dask.results.profile import Profile
from nlsq_dask.results.record import interval_quantile


class Uncertainty(Predictions):
    """What :class:`nlsq_dask.FitResult` says of the uncertainty of the estimates."""

    blocks: BlockDiagnostics | None

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
        array([[1.87, 2.09],
               [0.72, 1.39]])
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

    @property
    def has_blocks(self) -> bool:
        """Whether there are sums of blocks, for :meth:`block_diagnostics` and its picture."""
        return self.blocks is not None

    @cached_property
    def _profiles(self) -> dict[tuple[str, float], Profile]:
        """Profiles computed so far, by name and by the quantile that they reach."""
        return {}

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

    def _known_intervals(self, quantile: float) -> dict[str, tuple[float, float]]:
        """Intervals by the profiles computed so far; by the shortest that reaches the quantile."""
        longest_first = sorted(self._profiles.items(), reverse=True, key=lambda entry: entry[0][1])
        return {
            name: made.interval(quantile)
            for (name, reach), made in longest_first
            if reach >= quantile
        }
