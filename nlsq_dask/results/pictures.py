"""The pictures of a result, as methods."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from nlsq_dask import _errors
from nlsq_dask.results.binning import Scales
from nlsq_dask.results.drawing import course
from nlsq_dask.results.drawing.images import ImageOptions, plot_images
from nlsq_dask.results.drawing.residuals import plot_residuals
from nlsq_dask.results.drawing.rows import RowOptions, plot_rows
from nlsq_dask.results.record import interval_quantile
from nlsq_dask.results.uncertainty import Uncertainty

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("auto", "rows", "images")


class Pictures(Uncertainty):
    """What :class:`nlsq_dask.FitResult` draws.

    Every method takes ``ax``, to draw into axes of a figure of the caller, and returns the figure.
    A new figure is not known to pyplot: notebooks show the figure, and ``savefig`` writes it.
    """

    def plot(
        self,
        kind: Literal["auto", "rows", "images"] = "auto",
        *,
        ax: Any = None,
        bins: tuple[int, int] = (200, 120),
        level: float = 0.95,
        dims: Sequence[Hashable] | None = None,
        at: Mapping[Any, int] | None = None,
        xscale: Literal["linear", "log"] = "linear",
        yscale: Literal["linear", "log"] = "linear",
    ) -> Figure:
        """Draw the data with the fit, and the residuals.

        By rows: data, curve and confidence band over the coordinate, and the residuals below; over
        the fitted value for a model of several coordinates. Up to some thousands of rows are drawn
        as points. More rows are counted in cells, in two readings of the data, with mean residuals
        and their standard errors. As images: data, model and residuals side by side, in one reading
        of the data. The size of a picture does not depend on the number of rows. Needs matplotlib:
        ``pip install "nlsq_dask[plot]"``.

        Parameters
        ----------
        kind : {"auto", "rows", "images"}
            "auto" (default): images, if ``y`` has several dimensions and the model several
            coordinates; else by rows.
        ax : Axes or sequence of Axes, optional
            By rows: for data and fit, residuals, and mean residuals of counted rows. As images: for
            data, model and residuals. Pictures without axes are left out.
        bins : pair of int
            Number of cells along the abscissa and the ordinate, for counted rows.
        level : float
            Probability of the confidence band, in (0, 1).
        dims : pair, optional
            Dimensions along the ordinate and the abscissa of images, by name or number; the last
            two by default. Images are means over all other dimensions.
        at : dict, optional
            Indices of other dimensions at which images are cut, by name or number.
        xscale, yscale : {"linear", "log"}
            Scales of the coordinate, and of the observations; as images, `yscale` is that of the
            colours.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingLibraryError
            If matplotlib is not installed.
        InputError
            If the result has no model or no data, or the data have no such dimension or index.
        """
        if kind not in KINDS:
            raise _errors.unknown_choice("kind", kind, KINDS)
        scales = Scales.of(xscale, yscale)
        if kind == "images" or (kind == "auto" and self._has_images):
            return plot_images(self, ImageOptions(dims, at, log=scales.log_y), ax)
        if dims is not None or at is not None:
            raise _errors.rows_have_no_dims()
        return plot_rows(self, RowOptions(bins, level, scales), ax)

    def plot_residuals(
        self, *, ax: Any = None, xscale: Literal["linear", "log"] = "linear"
    ) -> Figure:
        """Draw the distribution of the residuals, and what they depend on.

        Four pictures: the histogram with the normal distribution; quantiles over those of the
        normal distribution; means with their standard errors over the coordinate, or over the
        fitted value; and the same over the number of the block, or of the row for data in memory.
        Residuals are in standard deviations: sigma, or their root mean square. Two readings of the
        data.

        Parameters
        ----------
        ax : Axes or sequence of Axes, optional
            For the four pictures. Pictures without axes are left out.
        xscale : {"linear", "log"}
            Scale of the coordinate.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingLibraryError
            If matplotlib is not installed.
        InputError
            If the result has no model or no data.
        """
        return plot_residuals(self, Scales.of(xscale, "linear"), ax)

    def plot_correlation(self, *, ax: Any = None) -> Figure:
        """Draw the correlations of the estimates as a map.

        Parameters that are fixed, or that the data do not determine, are grey.

        Parameters
        ----------
        ax : Axes, optional

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingLibraryError
            If matplotlib is not installed.
        """
        return course.plot_correlation(self, ax)

    def plot_history(self, *, ax: Any = None) -> Figure:
        """Draw the cost and the distance to the optimum over the evaluations of the search.

        Parameters
        ----------
        ax : Axes or sequence of Axes, optional
            For the cost and the distance.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingLibraryError
            If matplotlib is not installed.
        """
        return course.plot_history(self, ax)

    def plot_profile(self, name: str, *, level: float = 0.95, ax: Any = None) -> Figure:
        """Draw how the sum of squares rises where a parameter is held away from its estimate.

        With the parabola of a linear model, and the interval by :meth:`profile`, which is computed
        if it was not yet.

        Parameters
        ----------
        name : str
            The parameter.
        level : float
            Probability of the interval, in (0, 1).
        ax : Axes, optional

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingLibraryError
            If matplotlib is not installed.
        InputError
            As :meth:`profile`.
        """
        quantile = interval_quantile(level, self.dof, known_scale=self.absolute_sigma)
        return course.plot_profile(self, self.profile(name, level), quantile, level, ax)

    def plot_blocks(self, *, ax: Any = None) -> Figure:
        """Draw how well each block fits, and how far each moves the estimates.

        The numbers are those of :meth:`block_diagnostics`: nothing is read. χ² a row of each block
        is beside that of all rows, with three standard errors for normal noise. The shift is the
        largest of all parameters, in standard errors, if the block is left out.

        Parameters
        ----------
        ax : Axes or sequence of Axes, optional
            For χ² a row, and the shift.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        MissingLibraryError
            If matplotlib is not installed.
        InputError
            As :meth:`block_diagnostics`.
        """
        return course.plot_blocks(self.block_diagnostics(), ax)

    @property
    def _has_images(self) -> bool:
        """Whether the data have two dimensions to draw, and the model several coordinates."""
        model = self.fitted
        data = None if model is None else model.data
        return data is not None and data.y.ndim > 1 and len(data.coords) > 1
