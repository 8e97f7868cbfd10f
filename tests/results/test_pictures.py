"""Pictures of results: images, residuals, correlations, the course of a search, and profiles."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import nlsq_dask
from nlsq_dask import FitResult, InputError, InputTypeError, MissingLibraryError
from nlsq_dask.results import binning
from nlsq_dask.results.drawing import course
from nlsq_dask.results.drawing.residuals import quantiles

TIMES = np.arange(4) * 0.5
ROWS, COLUMNS = np.linspace(-1, 1, 5), np.linspace(0, 2, 7)


def plane(x, a, b):
    return a * x[0] + b * x[1]


def line(x, a, b):
    return a * x + b


def cube_data():
    """A cube (time, row, column) with a NaN in each of two pixels, and all of a third pixel NaN."""
    rng = np.random.default_rng(3)
    y = 2 * TIMES[:, None, None] - 3 * COLUMNS + rng.normal(0, 0.1, (4, 5, 7))
    y[1, 2, 3] = y[2, 0, 0] = np.nan
    y[:, 4, 6] = np.nan
    return y


@pytest.fixture(scope="module")
def cube():
    x = (TIMES[:, None, None], COLUMNS[None, None, :])
    return nlsq_dask.fit(plane, x, cube_data(), p0=[1, 1], nan_policy="omit")


@pytest.fixture(scope="module")
def lazy_cube():
    dims = ("time", "row", "column")
    units = {"time": ("time", TIMES, {"units": "s"}), "row": ROWS, "column": COLUMNS}
    attrs = {"units": "K", "long_name": "heat"}
    y = xr.DataArray(da.from_array(cube_data(), chunks=(2, 5, 3)), units, dims, attrs=attrs)
    return nlsq_dask.fit(plane, ("time", "column"), y, p0=[1, 1], nan_policy="omit")


@pytest.fixture(scope="module")
def straight():
    rng = np.random.default_rng(4)
    x = np.linspace(1, 5, 200)
    return nlsq_dask.fit(line, x, 2 * x + 1 + rng.normal(0, 0.2, 200), p0=[1, 0])


def shown(axes):
    """The numbers of an image, NaN where there is none."""
    return axes.collections[0].get_array().filled(np.nan)


def dense(result, over=None, at=None):
    """Images by NumPy: data, model and residuals where there are residuals."""
    y = cube_data()
    residuals = np.asarray(result.residuals())
    fitted = np.where(np.isnan(residuals), np.nan, y - residuals)
    cut = [a if at is None else np.take(a, [at[1]], at[0]) for a in (y, fitted, residuals)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of a pixel without rows
        return [np.nanmean(a, axis=over) for a in cut]


@pytest.mark.slow
@pytest.mark.every(2)
@pytest.mark.parametrize("lazy", [True, False])
def test_images_are_means_over_the_other_dimensions(lazy, request):
    result = request.getfixturevalue("lazy_cube" if lazy else "cube")
    for found, expected in zip(result.plot().axes, dense(result, over=0), strict=False):
        np.testing.assert_allclose(shown(found), expected, rtol=1e-12, atol=1e-12)
    for found, expected in zip(
        result.plot(at={0 if not lazy else "time": -1}).axes,
        dense(result, over=0, at=(0, 3)),
        strict=False,
    ):
        np.testing.assert_allclose(shown(found), expected, rtol=1e-12, atol=1e-12)
    dims = ("column", "time") if lazy else (2, 0)
    for found, expected in zip(result.plot(dims=dims).axes, dense(result, over=1), strict=False):
        np.testing.assert_allclose(shown(found), expected.T, rtol=1e-12, atol=1e-12)


def test_images_have_few_pixels_each_the_mean_of_its_rows(monkeypatch, cube):
    monkeypatch.setattr("nlsq_dask.results.drawing.images.MAX_PIXELS", 3)
    image = shown(cube.plot().axes[0])
    assert image.shape == (3, 3)
    y = cube_data()
    # Rows 0 to 4 and columns 0 to 6 in three pixels each, as i * 3 // n numbers them.
    assert image[0, 1] == pytest.approx(np.nanmean(y[:, 0:2, 3:5]), rel=1e-12)
    assert image[2, 2] == pytest.approx(np.nanmean(y[:, 4:5, 5:7]), rel=1e-12)


@pytest.mark.slow
def test_colours_are_shared_and_those_of_residuals_are_symmetric(lazy_cube):
    figure = lazy_cube.plot()
    first, second, third = (axes.collections[0] for axes in figure.axes[:3])
    assert first.norm is second.norm
    low, high = third.get_clim()
    assert low == -high < 0
    assert [axes.get_title() for axes in figure.axes[:3]] == ["data", "model", "residual"]
    assert figure.axes[0].get_ylabel() == "row"
    assert [bar.get_ylabel() for bar in figure.axes[3:]] == ["heat [K]", "y − f [K]"]
    assert figure.get_suptitle() == "mean over time (4)"
    assert lazy_cube.plot(at={"time": 3}).get_suptitle() == "time = 1.5 s"


def test_axes_of_images_are_the_coordinates(cube):
    mesh = cube.plot().axes[0].collections[0]
    corners = mesh.get_coordinates()
    step = COLUMNS[1] - COLUMNS[0]
    expected = np.append(COLUMNS - step / 2, COLUMNS[-1] + step / 2)
    np.testing.assert_allclose(corners[0, :, 0], expected, atol=1e-12)
    np.testing.assert_allclose(corners[:, 0, 1], np.arange(6) - 0.5)  # no coordinate: the index
    assert cube.plot().axes[0].get_ylabel() == "index of dimension 1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dims": (0, 5)}, "no dimension 5: they have 0, 1 and 2"),
        ({"dims": (1, 1)}, "are no two dimensions"),
        ({"dims": (0,)}, "are no two dimensions"),
        ({"at": {0: 4}}, "a whole number from 0 to 3"),
        ({"at": {0: 1.5}}, "a whole number from 0 to 3"),
        ({"at": {2: 0}}, "an axis of the images"),
        ({"kind": "rows", "at": {0: 1}}, "this picture is by rows"),
        ({"kind": "image"}, "kind = 'image' is unknown"),
        ({"kind": "rows", "xscale": "symlog"}, "xscale = 'symlog' is unknown"),
    ],
)
def test_what_cannot_be_drawn_is_named(cube, options, said):
    with pytest.raises(InputError, match=said):
        cube.plot(**options)


def test_images_of_a_line_of_data_are_refused(straight):
    with pytest.raises(InputError, match="y has 1"):
        straight.plot("images")


@pytest.mark.slow
def test_pictures_go_into_axes_of_the_caller(straight, cube):
    figure = Figure()
    axes = figure.subplots(2, 2)
    assert straight.plot(ax=axes[0, 0]) is figure
    assert straight.plot(ax=axes[1]) is figure
    assert axes[0, 0].lines
    assert axes[1, 1].get_ylabel() == "y − f"
    assert cube.plot(ax=Figure().subplots(1, 3)).axes[2].collections
    assert straight.plot_correlation(ax=axes[0, 1]) is figure
    with pytest.raises(InputTypeError, match="plt.subplots"):
        straight.plot(ax="top")
    with pytest.raises(InputError, match=r"plot_history\(\) has 4 axes: pass 1 to 2"):
        straight.plot_history(ax=Figure().subplots(4))


@pytest.mark.slow
def test_a_notebook_shows_a_figure_without_pyplot(straight):
    assert straight.plot_history()._repr_png_().startswith(b"\x89PNG")


@pytest.mark.slow
def test_residuals_by_size_by_abscissa_and_by_row(straight):
    histogram, normal, by_x, by_row = straight.plot_residuals().axes
    z = np.asarray(straight.residuals()) / straight.rmse
    bars = histogram.patches[0].get_data()
    np.testing.assert_allclose(np.sum(bars.values * np.diff(bars.edges)), 1.0)
    expected, found = normal.lines[0].get_xydata().T
    shares = [0.5 * math.erfc(-q / math.sqrt(2)) for q in expected]
    below = [np.mean(z <= end) for end in found]  # an end may round to either side of a row
    np.testing.assert_allclose(shares, below, atol=1.01 / 200)
    assert found.max() > 2
    means = by_row.containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(means[:, 1], z.reshape(50, 4).mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(means[:, 0], np.arange(50) * 4 + 1.5)
    assert (by_x.get_xlabel(), by_row.get_xlabel()) == ("x", "row number")


def test_residuals_by_block(lazy_cube):
    axes = lazy_cube.plot_residuals().axes[3]
    z = np.asarray(lazy_cube.residuals()) / lazy_cube.rmse
    blocks = [z[t : t + 2, :, c : c + 3] for t in (0, 2) for c in (0, 3, 6)]
    means = axes.containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(means[:, 1], [np.nanmean(b) for b in blocks], atol=1e-12)
    assert means[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert axes.get_xlabel() == "block number"


def test_residuals_far_out_count_in_the_quantiles(straight):
    counts, edges = np.array([3, 0, 1, 6]), np.array([-1.0, 0.0, 1.0, 2.0, 3.0])
    expected, found = quantiles(counts, edges)
    assert found.tolist() == [0.0, 2.0]
    np.testing.assert_allclose(expected, [-0.5244005, -0.2533471], rtol=1e-6)


def test_bins_of_a_logarithmic_axis(straight):
    scales = binning.Scales(log_x=True, log_y=True)
    found = binning.binned(straight.fitted, straight.popt, 0.2, bins=(8, 6, 4), scales=scales)
    data = straight.fitted.data
    edges = (np.geomspace(1, 5, 9), found.y_edges)
    np.testing.assert_allclose(found.x_edges, edges[0])
    np.testing.assert_allclose(np.diff(np.log(found.y_edges), 2), 0, atol=1e-12)
    expected = np.histogram2d(data.coords[0], data.y, edges)[0]
    np.testing.assert_array_equal(found.sums.observed, expected)
    figure = straight.plot(xscale="log", yscale="log")
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")


def test_correlations_are_written_where_they_are_known(straight):
    axes = straight.plot_correlation().axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    r = straight.correlation()[0, 1]
    assert texts[0, 1] == texts[1, 0] == f"{r:.2f}"
    fixed = nlsq_dask.fit(line, [0.0, 1, 2], [0.0, 1.1, 2], p0=[1, 0], fixed={"b": 0.0})
    assert [t.get_text() for t in fixed.plot_correlation().axes[0].texts].count("–") == 2


def test_the_course_of_a_search(straight):
    cost, distance, *_ = straight.plot_history().axes
    history = straight.history
    drawn = cost.lines[0].get_xydata()
    accepted = [r for i, r in enumerate(history) if r.accepted or i == 0]
    assert drawn[:, 0].tolist() == [r.nfev for r in accepted]
    assert drawn[0, 1] == pytest.approx(history[0].cost - straight.cost)
    assert len(distance.lines[0].get_xydata()) <= len(history)
    assert cost.get_yscale() == distance.get_yscale() == "log"


def test_costs_that_are_not_finite_are_left_out(straight):
    first, *_ = straight.history
    rises = course.rises([first, replace(first, cost=np.inf), replace(first, cost=np.nan)])
    assert rises[0] > 0
    assert np.isnan(rises[1:]).all()
    assert np.isnan(course.rises([replace(first, cost=np.nan)])).all()


@pytest.mark.slow
def test_the_profile_of_a_line_is_a_parabola(straight):
    axes = straight.plot_profile("a").axes[0]
    parabola, profile = axes.lines[0].get_xydata(), axes.lines[1].get_xydata()
    error = straight.params["a"].stderr
    expected = ((profile[:, 0] - straight.popt[0]) / error) ** 2
    np.testing.assert_allclose(profile[:, 1], expected, rtol=1e-5, atol=1e-8)
    assert parabola[0, 1] == pytest.approx(profile[0, 1], rel=1e-5)
    ends = sorted(line.get_xdata()[0] for line in axes.lines[3:5])
    np.testing.assert_allclose(ends, straight.confidence_intervals()[0], rtol=1e-4)


@pytest.mark.slow
def test_blocks_by_chi2_and_by_their_influence():
    rng = np.random.default_rng(6)
    x = np.linspace(1, 5, 400)
    y = 2 * x + 1 + rng.normal(0, 0.2, 400)
    y[160:200] += 1.0  # a bad chunk
    lazy = (da.from_array(a, chunks=40) for a in (x, y))
    result = nlsq_dask.fit(line, *lazy, p0=[1, 0], diagnostics=True)
    chi2, shift = result.plot_blocks().axes
    table = result.block_diagnostics()
    drawn = chi2.lines[1].get_xydata()
    np.testing.assert_array_equal(drawn[:, 1], table.chi2_per_row)
    np.testing.assert_allclose(chi2.lines[0].get_ydata(), result.chi2 / 400, rtol=1e-12)
    assert drawn[4, 1] > 2 * np.delete(drawn[:, 1], 4).max()
    lengths = [segment[1, 1] for segment in shift.collections[0].get_segments()]
    np.testing.assert_allclose(lengths, np.abs(table.shift).max(axis=1))
    with pytest.raises(InputError, match="diagnostics=True"):
        nlsq_dask.fit(line, x, y, p0=[1, 0]).plot_blocks()


def test_a_result_from_a_file_has_the_pictures_that_need_no_data(straight, tmp_path):
    straight.save(tmp_path / "line.json")
    loaded = FitResult.load(tmp_path / "line.json")
    assert loaded.plot_correlation().axes
    assert loaded.plot_history().axes
    for draw in (loaded.plot, loaded.plot_residuals):
        with pytest.raises(InputError, match="load it with its model"):
            draw()


def test_without_matplotlib_the_error_names_the_method(straight, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for name in ("plot", "plot_residuals", "plot_correlation", "plot_history"):
        with pytest.raises(MissingLibraryError, match=rf"{name}\(\) draws.*nlsq_dask\[plot\]"):
            getattr(straight, name)()
