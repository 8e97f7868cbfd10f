"""Whole fits: the answers of SciPy, through every strategy, and what a fit leaves alone."""

from __future__ import annotations

import logging
import os
import threading
import warnings

import dask
import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import zarr

from nlsq_dask import FitResult, Status, fit
from tests.api.scipy_problems import PROBLEMS

STRATEGIES = ["standard", "chunked", "streaming"]
X = np.linspace(0, 4, 2000)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.sin(37 * X)


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


@pytest.fixture(scope="module")
def expected():
    return fit(decay, X, Y, p0=[1, 1, 0])


def assert_same_answer(result, expected):
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-8)
    np.testing.assert_allclose(result.pcov, expected.pcov, rtol=1e-7)
    assert result.cost == pytest.approx(expected.cost, rel=1e-12)


def as_user_data(problem, strategy):
    """Dask arrays of unequal chunks for streaming, NumPy arrays else."""
    if strategy != "streaming":
        return problem.x, problem.y, problem.sigma
    shape = problem.y.shape
    y = da.from_array(problem.y, chunks=tuple(n // 3 + 1 for n in shape))
    x = problem.x
    if not isinstance(x, tuple):
        x = da.from_array(x, chunks=777)
    sigma = problem.sigma
    if np.ndim(sigma):
        sigma = da.from_array(sigma, chunks=1234)
    return x, y, sigma


@pytest.mark.quick(4)
@pytest.mark.every(3)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_parameters_and_covariance_of_scipy(name, strategy):
    problem = PROBLEMS[name]
    x, y, sigma = as_user_data(problem, strategy)
    for absolute_sigma in (False, True):
        result = fit(
            problem.model,
            x,
            y,
            problem.p0,
            sigma=sigma,
            absolute_sigma=absolute_sigma,
            bounds=problem.bounds,
            strategy=strategy,
            ftol=1e-10,  # 1e-8 ends 1.2e-3 standard errors off with active bounds, as in SciPy
        )
        popt, pcov = problem.scipy_fit(absolute_sigma)

        assert result.success
        assert result.strategy == strategy
        difference = np.abs(result.popt - popt)
        perr = np.sqrt(np.diag(pcov))
        assert np.all(difference <= np.maximum(1e-7 * np.abs(popt), 1e-3 * perr))
        scale = np.sqrt(np.outer(np.diag(pcov), np.diag(pcov)))
        assert np.all(np.abs(result.pcov - pcov) <= 1e-4 * scale)
        assert result.n_points == problem.y.size


@pytest.mark.parametrize("name", ["active bounds", "two active"])
def test_active_bounds_are_reported(name):
    problem = PROBLEMS[name]
    result = fit(
        problem.model, problem.x, problem.y, problem.p0, sigma=problem.sigma, bounds=problem.bounds
    )
    lower, upper = (np.broadcast_to(b, 3) for b in problem.bounds)
    assert np.all((lower <= result.popt) & (result.popt <= upper))
    reference = scipy.optimize.least_squares(
        lambda p: (
            (problem.formula(np, problem.x, *p) - problem.y)
            / (1.0 if problem.sigma is None else problem.sigma)
        ),
        problem.p0,
        bounds=problem.bounds,
        xtol=1e-10,
        ftol=1e-10,
    )
    np.testing.assert_array_equal(result.active_mask, reference.active_mask)
    assert result.active_mask.any()
    assert result.cost == pytest.approx(reference.cost, rel=1e-8)


@pytest.mark.parametrize("form", ["arrays", "mapping", "scipy"])
def test_forms_of_bounds_and_starting_values(expected, form):
    forms = {
        "arrays": ([0, 0, -1], [2, 9, np.inf]),
        "mapping": {"a": (0, 2), "b": (0, 9), "c": (-1, None)},
        "scipy": scipy.optimize.Bounds([0, 0, -1], [2, 9, np.inf]),
    }
    result = fit(decay, X, Y, {"c": 0, "a": 1, "b": 1}, bounds=forms[form])
    reference = fit(decay, X, Y, [1, 1, 0], bounds=forms["arrays"])
    np.testing.assert_array_equal(result.popt, reference.popt)
    assert result.params["a"].value == pytest.approx(2.0, abs=1e-6)
    assert expected.params["a"].value > 2.0


def test_without_starting_values():
    result = fit(decay, X, Y)
    np.testing.assert_allclose(result.popt, fit(decay, X, Y, p0=[1, 1, 1]).popt)


def test_tolerances_end_the_fit_where_it_has_arrived(expected):
    tight = fit(decay, X, Y, p0=[2, 1, 0], ftol=1e-14, xtol=1e-14, gtol=1e-14)
    for loose, status in (
        (dict(ftol=None, xtol=None, gtol=0.5), Status.GRADIENT),
        (dict(ftol=0.5, xtol=None, gtol=None), Status.COST),
        (dict(ftol=None, xtol=0.5, gtol=None), Status.STEP),
    ):
        result = fit(decay, X, Y, p0=[2, 1, 0], **loose)
        assert result.status is status
        assert result.scipy_status in (Status.GRADIENT, Status.COST, Status.STEP)
        assert result.nfev < tight.nfev
        assert result.distance_to_optimum_sigma <= 0.01
    scaled = fit(decay, X, Y, p0=[1, 1, 0], x_scale=[2.0, 1.0, 0.5])
    assert_same_answer(scaled, expected)


@pytest.fixture
def sources(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    x_store = zarr.create_array(tmp_path / "x.zarr", shape=X.shape, chunks=(300,), dtype="f8")
    y_store = zarr.create_array(
        tmp_path / "y.zarr", shape=X.shape, chunks=(50,), shards=(500,), dtype="f8"
    )
    x_store[:], y_store[:] = X, Y
    with jax.enable_x64(True):
        x_jax, y_jax = jnp.asarray(X), jnp.asarray(Y)
    return {
        "lists": (X.tolist(), Y.tolist()),
        "memory maps": tuple(np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in "xy"),
        "JAX": (x_jax, y_jax),
        "zarr": (x_store, y_store),
        "big endian": (X.astype(">f8"), Y.astype(">f8")),
        "reversed": (X[::-1], Y[::-1]),
        "column": (X[:, None], Y[:, None]),
        "grid": (X.reshape(40, 50), Y.reshape(40, 50)),
        "stacked": (X[None], Y),
        "Dask": (da.from_array(X, chunks=170), da.from_array(Y, chunks=310)),
        "NumPy x, Dask y": (X, da.from_array(Y, chunks=310)),
        "Dask x, NumPy y": (da.from_array(X, chunks=310), Y),
        "Dask x, zarr y": (da.from_array(X, chunks=310), y_store),
        "linspace": (da.linspace(0, 4, 2000, chunks=77), Y),
        "arange": (da.arange(2000, chunks=77) * (4 / 1999), Y),
        "one chunk": (da.from_array(X, chunks=-1), da.from_array(Y, chunks=-1)),
        "one chunk and many": (da.from_array(X, chunks=-1), da.from_array(Y, chunks=9)),
        "one row a chunk": (da.from_array(X, chunks=1), da.from_array(Y, chunks=1)),
        "ragged": (
            da.from_array(X, chunks=((1, 0, 998, 1001),)),
            da.from_array(Y, chunks=((0, 3, 997, 1000, 0),)),
        ),
        "persisted": dask.persist(da.from_array(X, chunks=170), da.from_array(Y, chunks=310)),
        "concatenated": (
            da.concatenate([da.from_array(X[:700], chunks=90), da.from_array(X[700:], chunks=130)]),
            da.from_array(Y, chunks=310),
        ),
        "sorted from disorder": (
            da.from_array(X[::-1], chunks=170)[::-1],
            da.from_array(np.roll(Y, 5), chunks=310)[np.r_[5:2000, 0:5]],
        ),
        "computed": (da.from_array(X, chunks=170) / 2 * 2, da.from_array(Y - 1, chunks=99) + 1),
    }


SOURCES = [
    "lists", "memory maps", "JAX", "zarr", "big endian", "reversed", "column", "grid", "stacked",
    "Dask", "NumPy x, Dask y", "Dask x, NumPy y", "Dask x, zarr y", "linspace", "arange",
    "one chunk", "one chunk and many", "one row a chunk", "ragged", "persisted", "concatenated",
    "sorted from disorder", "computed",
]  # fmt: skip


@pytest.mark.quick(3)
@pytest.mark.every(2)
@pytest.mark.parametrize("name", SOURCES)
def test_every_source_of_data(sources, expected, name):
    x, y = sources[name]
    model = (lambda x, a, b, c: decay(x[0], a, b, c)) if name == "stacked" else decay
    result = fit(model, x, y, p0=[1, 1, 0], stat_tol=None)
    assert_same_answer(result, expected)
    assert (result.strategy == "streaming") == any(
        isinstance(a, da.Array | zarr.Array) for a in (x, y)
    )


def test_all_sources_are_tried(sources):
    assert set(sources) == set(SOURCES)


@pytest.mark.quick(3)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    "sigma",
    [0.1, np.float32(0.1), np.array(0.1), [0.1], np.full(2000, 0.1), da.full(2000, 0.1, chunks=99)],
    ids=["float", "float32", "0-d", "list of one", "array", "Dask"],
)
def test_every_form_of_sigma(expected, lazy, sigma):
    y = da.from_array(Y, chunks=310) if lazy else Y
    relative = fit(decay, X, y, p0=[1, 1, 0], sigma=sigma, stat_tol=None)
    np.testing.assert_allclose(relative.popt, expected.popt, rtol=1e-8)
    np.testing.assert_allclose(relative.pcov, expected.pcov, rtol=1e-6)
    assert relative.chi2 == pytest.approx(expected.chi2 / 0.01, rel=1e-6)
    absolute = fit(decay, X, y, p0=[1, 1, 0], sigma=sigma, absolute_sigma=True, stat_tol=None)
    np.testing.assert_allclose(absolute.pcov, relative.pcov / relative.reduced_chi2, rtol=1e-9)


@pytest.mark.quick(3)
@pytest.mark.parametrize("dtype", ["f4", "f2", "i4", "u1", "?"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sums_are_float64_whatever_the_dtype(dtype, strategy):
    """300 000 rows near 200 are far beyond what a sum in float32, float16 or uint8 can hold."""
    n = 300_000
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 1, n).astype("f4")
    y = np.asarray(200 + rng.uniform(-50, 50, n) if dtype != "?" else rng.random(n) < 0.3)
    y = y.astype(dtype)
    design = np.stack([x.astype(float), np.ones(n)], axis=1)
    solution = np.linalg.lstsq(design, y.astype(float))[0]
    data = (x, y)
    if strategy == "streaming":
        data = (da.from_array(x, chunks=70_001), da.from_array(y, chunks=50_000))
    result = fit(lambda x, a, b: a * x + b, *data, strategy=strategy)
    np.testing.assert_allclose(result.popt, solution, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_automatic_strategy():
    rows, columns = np.arange(30.0)[:, None], np.arange(40.0)
    image = 2 * rows + 3 * columns
    lazy = da.from_array(image, chunks=10)

    def plane(x, a, b):
        return a * x[0] + b * x[1]

    assert fit(plane, (rows, columns), image).strategy == "chunked"
    assert fit(plane, (rows, columns), lazy).strategy == "streaming"
    assert fit(decay, X, Y).strategy == "standard"
    assert fit(decay, X, Y, strategy="chunked").strategy == "chunked"
    assert fit(decay, X, Y, strategy="streaming").strategy == "streaming"


def test_a_model_of_all_rows_is_fitted_in_memory_as_scipy_does():
    def model(x, a, b):
        return a * jnp.exp(-b * (x - x.mean()))

    y = 2.0 * np.exp(-0.7 * (X - X.mean())) + 0.05 * np.sin(37 * X)
    result = fit(model, X, y, p0=[1, 1])
    popt, pcov = scipy.optimize.curve_fit(
        lambda x, a, b: a * np.exp(-b * (x - x.mean())), X, y, [1, 1], xtol=1e-14, ftol=1e-14
    )
    assert result.strategy == "standard"
    np.testing.assert_allclose(result.popt, popt, rtol=1e-7)
    np.testing.assert_allclose(result.pcov, pcov, rtol=1e-4)


def test_a_perfect_fit():
    result = fit(decay, X, 2.5 * np.exp(-1.3 * X) + 0.5, p0=[1, 1, 0])
    np.testing.assert_allclose(result.popt, [2.5, 1.3, 0.5], rtol=1e-9)
    assert result.cost < 1e-18
    assert np.isfinite(result.pcov).all()


def test_a_fit_of_a_whole_array_of_one_value_per_row_of_a_2d_x():
    """x of y's two-dimensional shape is one coordinate, not two."""
    x, y = X.reshape(2, 1000), Y.reshape(2, 1000)
    assert_same_answer(fit(decay, x, y, p0=[1, 1, 0]), fit(decay, X, Y, p0=[1, 1, 0]))


class Settings:
    """The user's settings that a fit could touch, from this thread and from a fresh one."""

    def __init__(self):
        # jax.enable_x64 is a context of a thread: another thread sees what is set for all.
        values = []
        thread = threading.Thread(target=lambda: values.append(jnp.ones(1).dtype))
        thread.start()
        thread.join()
        root = logging.getLogger()
        package = logging.getLogger("nlsq_dask")
        self.values = (
            values,
            dict(os.environ),
            dask.config.get("scheduler", None),
            dask.config.get("num_workers", None),
            dict(dask.config.config),
            [(log.level, list(log.handlers), log.propagate) for log in (root, package)],
            np.geterr(),
            warnings.filters[:],
            threading.excepthook,
        )

    def __eq__(self, other):
        return self.values == other.values

    __hash__ = None


@pytest.mark.parametrize("scheduler", [None, "synchronous", "threads"])
def test_no_global_setting_is_touched_at_any_time(scheduler):
    with dask.config.set({} if scheduler is None else {"scheduler": scheduler}):
        before = Settings()
        seen = {"model": [], "block": [], "upstream setting": []}

        def model(x, a, b, c):
            seen["model"].append(Settings())
            return decay(x, a, b, c)

        def upstream(block):
            seen["block"].append(Settings())
            seen["upstream setting"].append(jax.config.jax_enable_x64)
            return block

        y = da.from_array(Y, chunks=500).map_blocks(upstream, dtype=float, meta=np.empty(0))
        fit(model, X, y, p0=[1, 1, 0], cache=False)
        fit(model, X, Y, p0=[1, 1, 0])

        assert Settings() == before
        assert jax.config.jax_enable_x64 is False
        assert len(seen["model"]) >= 2
        assert len(seen["block"]) >= 4 * 4
        assert all(settings == before for settings in seen["model"] + seen["block"])
        # The user's own blocks never run with JAX in another precision than the user's.
        assert not any(seen["upstream setting"])


def test_the_user_s_64_bit_mode_stays_on():
    with jax.enable_x64(True):
        fit(decay, X, Y, p0=[1, 1, 0])
        assert jnp.ones(1).dtype == np.float64


def test_logging_goes_through_the_package_s_logger(caplog):
    with caplog.at_level(logging.INFO, logger="nlsq_dask"):
        fit(decay, X, Y, p0=[1, 1, 0])
    (message,) = (r.getMessage() for r in caplog.records if r.name == "nlsq_dask")
    assert message.startswith("2000 rows, 3 parameters: ")
    assert "strategy standard" in message


def test_fits_in_threads(expected):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(fit(decay, X, Y, p0=[1, 1, 0])))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert all(r.popt.tobytes() == expected.popt.tobytes() for r in results)
    assert all(isinstance(r, FitResult) for r in results)
