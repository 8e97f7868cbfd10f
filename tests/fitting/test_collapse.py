"""Fits whose rows share few coordinates read the data once."""

from __future__ import annotations

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import FitResult, InputError, fit, fit_models, plan
from tests.fitting.pilot_cases import decay, two_decays
from tests.support.counting_store import stored
from tests.support.problems import computed
from tests.support.same_result import assert_same_result

TIMES, PIXELS = 60, 300
T = np.linspace(0.0, 4.0, TIMES)[:, None]
P0 = [1.0, 1.0, 0.0]
RNG = np.random.default_rng(0)
Y = computed(decay, T, 2.5, 1.3, 0.5) + 0.1 * RNG.normal(size=(TIMES, PIXELS))
SIGMA = RNG.uniform(0.5, 2.0, (TIMES, PIXELS))
#: Criteria of rounding alone.
TIGHT = {"stat_tol": None, "ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
GAPS = np.where(RNG.random(Y.shape) < 0.1, np.nan, Y)


def lazily(array, chunks=(25, 110)):
    return da.from_array(array, chunks=chunks)


def both(y=Y, p0=P0, model=decay, **options):
    """The fit of the means, and that of all rows."""
    result = fit(model, T, y, p0, **options)
    rows = fit(model, T, y, p0, collapse=False, **options)
    assert (result.n_passes, result.n_distinct, rows.n_distinct) == (1, TIMES, 0)
    return result, rows


@pytest.mark.slow
@pytest.mark.every(2)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sigma": SIGMA},
        {"sigma": SIGMA[:1], "absolute_sigma": True},
        {"sigma": SIGMA[:, :1], "mask": SIGMA > 1.5, "method": "lm"},
        {"y": GAPS, "sigma": SIGMA, "nan_policy": "omit", "bounds": {"c": (-1.0, 0.45)}},
        {"y": Y.astype(np.float32), "fixed": {"b": 1.25}, "method": "dogbox"},
        {"y": lazily(Y), "ties": {"c": {"a": 0.2}}},
        {"y": lazily(np.ma.masked_greater(Y, 2.9)), "sigma": lazily(SIGMA, (60, 30))},
        {"y": (100 * Y).astype(np.int16), "fill_value": 50},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_a_collapsed_fit_ends_where_the_fit_of_all_rows_does(options):
    result, rows = both(**TIGHT, **options)
    assert result.success
    np.testing.assert_allclose(result.popt, rows.popt, rtol=1e-9)
    np.testing.assert_allclose(result.pcov, rows.pcov, rtol=1e-8)
    for name in ("cost", "chi2", "r_squared", "rmse", "reduced_chi2", "aic", "bic", "mae"):
        assert getattr(result, name) == pytest.approx(getattr(rows, name), rel=1e-11), name
    for name in ("n_points", "n_skipped", "dof", "fixed"):
        assert getattr(result, name) == getattr(rows, name), name
    np.testing.assert_array_equal(result.active_mask, rows.active_mask)
    np.testing.assert_allclose(result.robust_pcov(), rows.robust_pcov(), rtol=1e-8)
    lower, upper = result.prediction_interval(T)
    np.testing.assert_allclose(upper - lower, np.subtract(*rows.prediction_interval(T)[::-1]))


@pytest.mark.parametrize("y", [Y, lazily(Y)], ids=["in memory", "streamed"])
def test_a_default_fit_is_within_a_fiftieth_of_a_standard_error(y):
    result, rows = both(y)
    assert (np.abs(result.popt - rows.popt) < 0.02 * rows.perr).all()
    assert result.distance_to_optimum_sigma < 0.01


@pytest.mark.slow
def test_every_chunk_is_read_once(tmp_path):
    y = stored(tmp_path / "y", Y, (20, 100))
    result = fit(decay, T, y, P0, pilot=True, n_starts=5, progress=False)
    assert set(y.store.reads.values()) == {1}
    assert (result.n_passes, result.pilot, len(result.starts)) == (1, None, 5)
    assert min(start.cost for start in result.starts if start.cost) == result.cost
    y.store.clear_counts()
    assert result.mae == result.mae == pytest.approx(np.abs(Y - result.predict()).mean())
    assert set(y.store.reads.values()) == {1}
    y.store.clear_counts()
    result.profile("b")
    assert set(y.store.reads.values()) == {1}


def test_a_guess_is_made_from_the_means(tmp_path):
    seen = []

    def guessing(x, a, b, c):
        return decay(x, a, b, c)

    def guess(x, y):
        seen.append((x, y))
        return P0

    guessing.guess = guess
    y = stored(tmp_path / "y", Y, (20, 100))
    result = fit(guessing, T, y, progress=False)
    assert result.n_passes == 1
    assert set(y.store.reads.values()) == {1}
    np.testing.assert_array_equal(seen[0][0], T.ravel())
    np.testing.assert_allclose(seen[0][1], Y.mean(axis=1))


@pytest.mark.slow
def test_several_models_share_the_reading(tmp_path):
    y = stored(tmp_path / "y", Y, (20, 100))
    starts = {"decay": P0, "two_decays": [1.0, 1.0, 1.0, 0.1]}
    models = {"decay": decay, "two_decays": two_decays}
    comparison = fit_models(models, T, y, starts, progress=False)
    assert comparison.n_passes == 1
    assert set(y.store.reads.values()) == {1}
    for name, model in models.items():
        assert_same_result(comparison[name], fit(model, T, y, starts[name], progress=False))


def test_a_fit_that_was_stopped_reads_the_rows_again(tmp_path):
    whole = fit(decay, T, Y, P0)

    def stop(intermediate_result):
        raise StopIteration

    with pytest.warns(match="callback"):
        fit(decay, T, Y, P0, callback=stop, checkpoint=tmp_path)
    resumed = fit(decay, T, Y, P0, checkpoint=tmp_path, resume=True)
    assert resumed.n_passes == 2
    assert resumed.popt.tobytes() == whole.popt.tobytes()
    assert repr(resumed.history) == repr(whole.history)
    with pytest.raises(InputError, match="collapse"):
        fit(decay, T, Y, P0, checkpoint=tmp_path, resume=True, collapse=False)


def test_what_is_said_of_it(tmp_path):
    planned = plan(decay, T, lazily(Y), P0)
    assert (planned.passes, planned.n_distinct, planned.pilot) == ((1, 1), TIMES, False)
    assert "collapses them to the means at 60 distinct coordinates" in " ".join(
        str(planned).split()
    )
    in_memory = plan(decay, T, Y, P0, time=True)
    assert in_memory.passes == (1, 1)
    assert in_memory.total_seconds[0] == in_memory.pass_seconds > 0
    result = fit(decay, T, Y, P0)
    assert "collapsed     18,000 rows at 60 coordinates" in str(result)
    assert "`mae` of the result reads the data once" in result.summary()
    result.save(tmp_path / "result.json")
    loaded = FitResult.load(tmp_path / "result.json")
    assert loaded.n_distinct == TIMES
    assert np.isnan(loaded.mae)


def test_one_coordinate_of_all_rows():
    result = fit(lambda x, a: a + 0 * x, 1.0, Y, [0.0])
    assert (result.n_passes, result.n_distinct, result.n_points) == (1, 1, Y.size)
    assert result.popt[0] == pytest.approx(Y.mean(), rel=1e-12)
    assert result.perr[0] == pytest.approx(Y.std(ddof=1) / Y.size**0.5, rel=1e-10)


def cumulative(x, a, b):
    return a * jnp.cumsum(x) + b


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"loss": "huber"}, "loss='huber' depends on each residual"),
        ({"x": np.broadcast_to(T, Y.shape).copy()}, r"vary along every dimension.*\(60, 300\)"),
        ({"memory_limit_gb": 0.12}, "means at 60 distinct coordinates need .* MB"),
        (
            {"model": cumulative, "x": 1.0, "y": Y[0], "p0": [1.0, 0.0]},
            "more than the coordinates of its row",
        ),
        ({"x": 1.0, "y": Y[0, :20], "sigma": np.eye(20)}, "covariance matrix"),
    ],
    ids=["loss", "no broadcast", "memory", "not row-wise", "correlated"],
)
def test_what_cannot_be_collapsed_is_refused_only_where_it_was_asked_for(options, reason):
    arguments = {"model": decay, "x": T, "y": Y, "p0": P0, **options}
    with pytest.raises(InputError, match=f"collapse=True is impossible: .*{reason}"):
        fit(**arguments, collapse=True)
    assert plan(**arguments, time=False).n_distinct == 0


def test_more_than_a_tenth_of_the_rows_are_collapsed_on_demand():
    few = Y[:, :9]
    assert fit(decay, T, few, P0).n_distinct == 0
    result = fit(decay, T, few, P0, collapse=True)
    assert (result.n_distinct, result.n_passes) == (TIMES, 1)
    with pytest.raises(InputError, match="collapse = 'yes' is unknown"):
        fit(decay, T, Y, P0, collapse="yes")


def test_bad_values_are_named_as_ever():
    y = Y.copy()
    y[7, 11] = np.nan
    with pytest.raises(InputError, match=r"the first at index \(7, 11\)"):
        fit(decay, T, lazily(y), P0)
    with pytest.raises(InputError, match="all 18000 rows are left out"):
        fit(decay, T, Y, P0, mask=True)


def root(x, a, b):
    return a + jnp.sqrt(b * x)


@pytest.mark.slow
def test_rows_with_differences_for_derivatives_are_counted_as_rows():
    mask = np.zeros(Y.shape, bool)
    mask[0, :7] = True
    with pytest.warns(match=f"in {PIXELS - 7} of {Y.size - 7:,} rows"):
        result = fit(
            root, T, root(T, 1.0, 2.0) + Y - Y.mean(axis=1)[:, None], [1.0, 1.0], mask=mask
        )
    assert result.n_differenced == PIXELS - 7


@pytest.mark.cluster
def test_a_collapsed_fit_on_a_cluster(client):
    here, there = fit(decay, T, lazily(Y), P0), fit(decay, T, lazily(Y), P0, client=client)
    assert_same_result(there, here)
