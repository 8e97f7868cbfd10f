"""Pictures of fits: what is on them, for few rows and for many."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import Any

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import InputError
from nlsq_dask._errors import MissingLibraryError
from nlsq_dask.io.sources import observe
from nlsq_dask.questions.histogram import Histogram
from nlsq_dask.results import binning
from nlsq_dask.results.drawing.rows import MAX_POINTS, RowOptions, plot_rows
from nlsq_dask.results.fitted_model import FittedModel
from nlsq_dask.user_model.model import prepare_model

PARAMS = np.array([2.0, 1.3, 0.5])
MANY = MAX_POINTS + 1


@dataclass
class Result:
    """What a plot asks of a result."""

    fitted: FittedModel | None
    popt: np.ndarray
    pcov: np.ndarray
    rmse: float
    reduced_chi2: float = 1.0
    dof: int = 97
    absolute_sigma: bool = False


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def plane(x, a, b):
    return a * x[0] + b * x[1]


def decay_result(n, *, sigma=False, lazy=False, spread=0.02, **options) -> Result:
    rng = np.random.default_rng(n)
    x = rng.uniform(0, 4, n)
    a, b, c = PARAMS
    y = a * np.exp(-b * x) + c + rng.normal(0, 0.1, n)
    s = np.full(n, 0.1) if sigma else None
    if lazy:
        x, y = (da.from_array(v, chunks=-(-n // 7)) for v in (x, y))
    model = FittedModel(prepare_model(decay), observe(x, y, s, **options))
    return Result(model, PARAMS, spread * np.eye(3), 0.1)


def plane_result(shape) -> Result:
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(shape[0], 1)), rng.normal(size=(1, shape[1]))
    y = 2 * u - 3 * v + rng.normal(size=shape)
    model = FittedModel(prepare_model(plane, None, "tuple", 2), observe((u, v), y))
    return Result(model, np.array([2.0, -3.0]), np.eye(2), 1.0)


def labels(axes: Any) -> list[str]:
    legend = axes.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def points(axes: Any) -> np.ndarray:
    """Positions of the drawn markers."""
    return np.asarray(axes.containers[0].lines[0].get_xydata())


def n_drawn(figure: Any) -> int:
    """Vertices of all lines: what grows with the number of points."""
    return sum(len(line.get_xydata()) for axes in figure.axes for line in axes.lines)


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("sigma", [False, True])
def test_few_rows_are_points(sigma, lazy):
    result = decay_result(200, sigma=sigma, lazy=lazy)
    figure = plot_rows(result)
    top, bottom = figure.axes
    x, y = (np.asarray(a) for a in (result.fitted.data.coords[0], result.fitted.data.y))
    residuals = y - np.asarray(result.fitted.values(PARAMS))
    np.testing.assert_allclose(points(top), np.stack([x, y], axis=1))
    unit = 0.1 if sigma else 1.0
    np.testing.assert_allclose(points(bottom), np.stack([x, residuals / unit], axis=1), rtol=1e-10)
    assert labels(top) == ["data", "fit", "95 % confidence"]
    assert (bottom.get_xlabel(), top.get_ylabel()) == ("x", "y")
    assert bottom.get_ylabel() == ("(y − f) / σ" if sigma else "y − f")
    bars = top.containers[0].lines[2]
    assert len(bars) == (1 if sigma else 0)
    assert png(figure).startswith(b"\x89PNG")


def test_the_band_covers_what_the_errors_say():
    result = decay_result(50)
    figure = plot_rows(result, RowOptions(level=0.6827))
    (band,) = figure.axes[0].collections
    (curve,) = (line for line in figure.axes[0].lines if line.get_label() == "fit")
    x, values = curve.get_xydata().T
    errors = result.fitted.standard_errors(PARAMS, result.pcov, x)
    upper = band.get_paths()[0].vertices[:, 1].max()
    # One standard error for the probability of one, with 97 degrees of freedom.
    assert upper == pytest.approx((values + errors).max(), rel=0.01)
    assert "68.27 % confidence" in labels(figure.axes[0])


@pytest.mark.parametrize("spread", [0.0, 1e-12, np.inf])
def test_a_band_that_cannot_be_seen_is_not_in_the_legend(spread):
    result = decay_result(50)
    result.pcov = np.full((3, 3), np.inf) if spread == np.inf else spread * np.eye(3)
    assert labels(plot_rows(result).axes[0]) == ["data", "fit"]


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("sigma", [False, True])
def test_many_rows_are_counts_and_never_points(sigma, lazy):
    result = decay_result(MANY, sigma=sigma, lazy=lazy)
    figure = plot_rows(result, RowOptions(bins=(50, 40)))
    top, bottom, means, bar = figure.axes
    counts = top.collections[0].get_array()
    assert counts.shape == (40, 50)
    binned = binning.binned(result.fitted, PARAMS, 0.1, bins=(50, 40, 20))
    np.testing.assert_array_equal(counts.filled(0), binned.sums.observed.T)
    np.testing.assert_array_equal(
        bottom.collections[0].get_array().filled(0), binned.sums.residuals.T
    )
    assert n_drawn(figure) < 2000
    assert bar.get_ylabel() == "rows per cell"
    assert labels(top) == ["fit", "95 % confidence"]
    assert means.get_title(loc="right") == "mean ± standard error"
    low, high = bottom.get_ylim()
    assert (low, high) == pytest.approx((-5, 5) if sigma else (-0.5, 0.5))
    assert png(figure).startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_picture_of_more_rows_is_no_larger():
    sizes = [len(png(plot_rows(decay_result(n)))) for n in (MANY, 30 * MANY)]
    assert sizes[1] < 2 * sizes[0]


def test_mean_residuals_of_intervals():
    result = decay_result(MANY)
    _, _, axes, _ = plot_rows(result).axes
    container = axes.containers[0]
    centres, means = container.lines[0].get_xydata().T
    x, residuals = result.fitted.data.coords[0], result.fitted.residuals(PARAMS)
    edges = np.linspace(x.min(), x.max(), 26)
    n = np.histogram(x, edges)[0]
    np.testing.assert_allclose(centres, 0.5 * (edges[1:] + edges[:-1]), rtol=1e-12)
    expected = np.histogram(x, edges, weights=residuals)[0] / n
    np.testing.assert_allclose(means, expected, atol=1e-3)
    errors = [np.ptp(segment[:, 1]) / 2 for segment in container.lines[2][0].get_segments()]
    rms = np.sqrt(np.histogram(x, edges, weights=residuals**2)[0] / n)
    np.testing.assert_allclose(errors, rms / np.sqrt(n), rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(10, 12), (110, 120)])
def test_several_coordinates_are_drawn_by_the_fitted_value(shape):
    figure = plot_rows(plane_result(shape))
    top = figure.axes[0]
    lowest = next(axes for axes in reversed(figure.axes) if axes.get_xlabel())
    assert (lowest.get_xlabel(), top.get_ylabel()) == ("fitted value", "observed value")
    assert "observed = fitted" in labels(top)
    png(figure)


def test_rows_beyond_the_axes_are_counted():
    result = decay_result(MANY)
    result.fitted.data.y[:3] = 1e9
    figure = plot_rows(result)
    assert figure.axes[0].get_title(loc="left") == "3 rows beyond the axes"
    assert figure.axes[1].get_ylim() == pytest.approx((-0.5, 0.5))


@pytest.mark.parametrize("n", [300, MANY])
def test_rows_that_were_left_out_are_not_drawn(n):
    mask = np.arange(n) % 3 == 0
    figure = plot_rows(decay_result(n, mask=mask))
    top = figure.axes[0]
    drawn = len(points(top)) if n == 300 else top.collections[0].get_array().sum()
    assert drawn == pytest.approx(np.count_nonzero(~mask), abs=5)


def test_data_are_read_once_for_a_picture(monkeypatch):
    result = decay_result(MANY, lazy=True)
    calls = []
    of_block = Histogram.of_block

    def counted(self, placed, kernels):
        calls.append(placed)
        return of_block(self, placed, kernels)

    monkeypatch.setattr(Histogram, "of_block", counted)
    plot_rows(result)
    assert len(calls) == 7  # one a block


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 5])
def test_very_few_rows(n):
    result = decay_result(n)
    result.dof = 0
    result.pcov = np.full((3, 3), np.inf)
    result.reduced_chi2 = np.nan
    png(plot_rows(result))


@pytest.mark.slow
@pytest.mark.parametrize("rmse", [0.0, 1e-300])
def test_a_perfect_fit(rmse):
    x = np.linspace(0, 4, MANY)
    y = np.zeros(MANY)
    model = FittedModel(prepare_model(decay), observe(x, y))
    png(plot_rows(Result(model, np.zeros(3), np.zeros((3, 3)), rmse, 0.0)))


def test_a_loaded_result_cannot_be_drawn():
    loaded = FittedModel.of_model(decay, ("a", "b", "c"), "single", 1)
    with pytest.raises(InputError, match=r"plot\(\).*data"):
        plot_rows(Result(loaded, PARAMS, np.eye(3), 0.1))
    with pytest.raises(InputError, match=r"plot\(\).*model"):
        plot_rows(Result(None, PARAMS, np.eye(3), 0.1))


def test_without_matplotlib_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingLibraryError, match=r"pip install nlsq_dask\[plot\]") as caught:
        plot_rows(decay_result(20))
    assert isinstance(caught.value, ImportError)


def test_nothing_is_left_in_pyplot():
    plt = pytest.importorskip("matplotlib.pyplot")
    before = plt.get_fignums()
    plot_rows(decay_result(20))
    assert plt.get_fignums() == before
