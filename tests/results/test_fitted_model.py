"""What a fitted model computes on rows, in memory and in chunks."""

from __future__ import annotations

from dataclasses import replace

import dask
import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zarr
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from nlsq_dask import InputError, NotRowWiseError, fit
from nlsq_dask.engines.dask.executor import executor_of
from nlsq_dask.io.sources import observe
from nlsq_dask.kernels.values import row_compilations
from nlsq_dask.results import binning
from nlsq_dask.results.fitted_model import FittedModel
from nlsq_dask.user_model.model import prepare_loss, prepare_model
from nlsq_dask.user_model.model_spec import call_model
from tests.support.counting_store import stored
from tests.support.problems import combined, decays, problems, random_chunks

PARAMS = np.array([2.0, 1.3, 0.5])
PCOV = np.array([[0.04, 0.01, 0.0], [0.01, 0.09, 0.0], [0.0, 0.0, 0.0]])


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def decay_numpy(x):
    a, b, c = PARAMS
    return a * np.exp(-b * x) + c


def plane(x, a, b):
    return a * x[0] + b * x[1]


def from_mean(x, a):
    return a * (x - x.mean())


def lazily(value, rng):
    """The same data as Dask arrays of random chunks."""
    if isinstance(value, tuple):
        return tuple(lazily(v, rng) for v in value)
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        return value
    return da.from_array(value, chunks=random_chunks(rng, value.shape))


def dense_values(problem, shape):
    rates = np.arange(1, problem.params.size + 1) / 12
    x = as_float(problem.x)
    several = isinstance(x, tuple) or x.ndim > len(shape)
    u = np.broadcast_to(combined(tuple(x)) if several else x, shape)[..., None]
    terms = np.exp(-problem.params * u * rates)
    return terms.sum(axis=-1), -terms * u * rates


def as_float(x):
    return tuple(as_float(c) for c in x) if isinstance(x, tuple) else np.asarray(x, np.float64)


@pytest.mark.slow
@settings(max_examples=5)  # each compiles
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_rows_of_any_shape_equal_dense_numpy(data, seed):
    problem = data.draw(problems())
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(problem.params.size,) * 2)
    pcov = root @ root.T
    shape = problem.y.shape
    values, jacobian = dense_values(problem, shape)
    errors = np.sqrt(np.sum((jacobian @ root) ** 2, axis=-1))
    y = problem.y.astype(np.float64)

    for x, observed in (
        (problem.x, problem.y),
        (lazily(problem.x, rng), lazily(problem.y, rng)),
        (problem.x, lazily(problem.y, rng)),
    ):
        observations = observe(x, observed, problem.sigma)
        model = FittedModel(problem.spec, observations)
        results = (
            (model.values(problem.params), values),
            (model.standard_errors(problem.params, pcov), errors),
            (model.residuals(problem.params), y - values),
        )
        scale = np.abs(values) + np.abs(y) + 1
        for got, expected in results:
            assert (got.shape, got.dtype) == (shape, np.float64)
            assert isinstance(got, da.Array) == observations.lazy
            if observations.lazy:
                assert got.chunks == observed.chunks
                assert isinstance(got._meta, np.ndarray)
            computed = np.asarray(got)
            assert (computed.shape, computed.dtype) == (shape, np.float64)
            assert np.all(np.abs(computed - expected) <= 1e-11 * scale)


@pytest.mark.slow
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_new_coordinates_broadcast_among_themselves(data, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    u = rng.normal(size=shape)
    v = rng.normal(size=data.draw(st.sampled_from([shape, shape[1:], (1,) * len(shape)])))
    model = FittedModel(prepare_model(plane, None, "tuple", 2))
    params = np.array([2.0, -3.0])
    expected = 2 * u - 3 * v
    np.testing.assert_allclose(model.values(params, (u, v)), expected, atol=1e-14)
    lazy = model.values(params, (lazily(u, rng), lazily(v, rng)))
    assert lazy.shape == expected.shape
    np.testing.assert_allclose(lazy.compute(), expected, atol=1e-14)


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(1.5, id="number"),
        pytest.param([0.0, 1.0, 2.0], id="list"),
        pytest.param((0.0, 1.0, 2.0), id="tuple of numbers"),
        pytest.param(np.arange(6).reshape(2, 3), id="integers of two dimensions"),
        pytest.param(np.linspace(0, 4, 300_001, dtype=np.float32), id="several buffers"),
        pytest.param(np.zeros((0,)), id="no rows"),
        pytest.param(jnp.linspace(0, 1, 7), id="JAX"),
    ],
)
def test_forms_of_one_coordinate(x):
    values = FittedModel(prepare_model(decay)).values(PARAMS, x)
    expected = decay_numpy(np.asarray(x, np.float64))
    assert isinstance(values, np.ndarray)
    assert values.shape == expected.shape
    np.testing.assert_allclose(values, expected, rtol=1e-14)


def test_coordinates_on_disk(tmp_path):
    x = np.random.default_rng(1).uniform(0, 4, 5000)
    np.save(tmp_path / "x.npy", x)
    model = FittedModel(prepare_model(decay))
    mapped = model.values(PARAMS, np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert type(mapped) is np.ndarray
    np.testing.assert_allclose(mapped, decay_numpy(x), rtol=1e-14)

    array = zarr.create_array(tmp_path / "x.zarr", shape=x.shape, chunks=(700,), dtype=x.dtype)
    array[:] = x
    lazy = model.values(PARAMS, array)
    assert lazy.chunks == ((700,) * 7 + (100,),)
    np.testing.assert_allclose(lazy.compute(), decay_numpy(x), rtol=1e-14)


def test_stacked_coordinates():
    spec = prepare_model(plane, None, "stacked", 2)
    x = np.random.default_rng(2).normal(size=(2, 4, 5))
    params = np.array([2.0, -3.0])
    expected = 2 * x[0] - 3 * x[1]
    np.testing.assert_allclose(FittedModel(spec).values(params, x), expected, atol=1e-14)
    lazy = FittedModel(spec).values(params, da.from_array(x, chunks=(1, 2, 3)))
    assert lazy.chunks == ((2, 2), (3, 2))
    np.testing.assert_allclose(lazy.compute(), expected, atol=1e-14)


def test_masked_coordinates_have_no_value():
    x = np.ma.masked_greater(np.array([0.5, 1.0, 9.0]), 5)
    model = FittedModel(prepare_model(decay))
    expected = [*decay_numpy(np.array([0.5, 1.0])), np.nan]
    np.testing.assert_allclose(model.values(PARAMS, x), expected, rtol=1e-14)
    lazy = model.values(PARAMS, da.from_array(x, chunks=2))
    np.testing.assert_allclose(lazy.compute(), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("structure", "x", "message"),
    [
        ("tuple", (1.0,), "2 coordinates.*tuple of 2 arrays"),
        ("tuple", np.zeros((3, 4)), r"shape \(3, 4\).*tuple of 2 arrays"),
        ("stacked", np.zeros((3, 4)), r"shape \(3, 4\).*\(2, ...\)"),
        ("stacked", 1.0, r"float.*\(2, ...\)"),
        ("tuple", (np.zeros(3), np.zeros(4)), r"\(3,\), \(4,\).*do not broadcast"),
    ],
)
def test_coordinates_of_another_form(structure, x, message):
    model = FittedModel(prepare_model(plane, None, structure, 2))
    with pytest.raises(InputError, match=message):
        model.values([1.0, 1.0], x)


@pytest.mark.slow
def test_nothing_is_computed_before_it_is_asked_for(tmp_path):
    rng = np.random.default_rng(3)
    x = stored(tmp_path / "x", rng.uniform(0, 4, 1000), (130,))
    y = stored(tmp_path / "y", rng.normal(size=1000), (130,))
    model = FittedModel(prepare_model(decay), observe(x, y))
    arrays = {
        "values": (model.values(PARAMS), 0),
        "errors": (model.standard_errors(PARAMS, PCOV), 0),
        "infinite errors": (model.standard_errors(PARAMS, np.full((3, 3), np.inf)), 0),
        "residuals": (model.residuals(PARAMS), 1),
    }
    for name, (array, y_readings) in arrays.items():
        assert not x.store.reads, name
        array.compute()
        assert set(x.store.reads.values()) <= {1}, name
        assert set(y.store.reads.values()) == ({1} if y_readings else set()), name
        x.store.clear_counts()
        y.store.clear_counts()


def test_blocks_of_all_sizes_share_one_kernel():
    def cubic(x, a):
        return a * x**3

    spec = prepare_model(cubic)
    x = da.from_array(np.linspace(0, 1, 9000), chunks=((5000, 17, 1200, 2783),))
    values = FittedModel(spec).values([2.0], x)
    for _ in range(2):
        computed = values.compute(scheduler="threads")
    np.testing.assert_allclose(computed, 2 * np.linspace(0, 1, 9000) ** 3, atol=1e-15)
    assert row_compilations(spec) == 1


def test_equal_questions_have_equal_names():
    x = da.linspace(0, 1, 100, chunks=30)
    model = FittedModel(prepare_model(decay), observe(x, x))
    names = [
        model.values(PARAMS).name,
        model.values(PARAMS * 2).name,
        model.residuals(PARAMS).name,
        model.standard_errors(PARAMS, PCOV).name,
        model.standard_errors(PARAMS, 2 * PCOV).name,
    ]
    assert len(set(names)) == len(names)
    again = FittedModel(prepare_model(decay), observe(x, x))
    assert again.values(PARAMS).name == names[0]
    without_zeros = FittedModel(prepare_model(decay), observe(x, x, fill_value=0.0))
    assert without_zeros.residuals(PARAMS).name not in names


@pytest.mark.cluster
def test_values_on_a_cluster(client):
    scale = 1.7

    def local(x, a):
        return scale * a * x

    x = np.linspace(0, 1, 1000)
    values = FittedModel(prepare_model(local)).values([2.0], da.from_array(x, chunks=99))
    np.testing.assert_allclose(client.compute(values, sync=True), 3.4 * x, atol=1e-14)


def test_errors_of_fixed_and_of_undetermined_parameters():
    x = np.linspace(0, 4, 100)
    model = FittedModel(prepare_model(decay), observe(x, x))
    a, b, _ = PARAMS
    rows = np.stack([np.exp(-b * x), -a * x * np.exp(-b * x)], axis=1)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", rows, PCOV[:2, :2], rows))
    np.testing.assert_allclose(model.standard_errors(PARAMS, PCOV), expected, rtol=1e-12)
    assert np.all(model.standard_errors(PARAMS, np.zeros((3, 3))) == 0)
    assert np.all(model.standard_errors(PARAMS, np.full((3, 3), np.inf)) == np.inf)
    lazy = model.standard_errors(PARAMS, np.full((3, 3), np.inf), da.from_array(x, chunks=40))
    assert lazy.chunks == ((40, 40, 20),)
    assert np.all(lazy.compute() == np.inf)


def test_a_model_of_all_rows():
    x = np.random.default_rng(4).normal(size=70_000)
    y = 2 * x
    model = FittedModel(prepare_model(from_mean), observe(x, y), row_wise=False)
    np.testing.assert_allclose(model.values([3.0]), 3 * (x - x.mean()), atol=1e-12)
    np.testing.assert_allclose(model.values([3.0], x[:10]), 3 * (x[:10] - x[:10].mean()))
    np.testing.assert_allclose(model.residuals([3.0]), y - 3 * (x - x.mean()), atol=1e-12)
    with pytest.raises(NotRowWiseError):
        model.values([3.0], da.from_array(x, chunks=1000))
    loaded = FittedModel.of_model(from_mean, ("a",), "single", 1)
    assert not loaded.row_wise
    assert FittedModel.of_model(decay, ("a", "b", "c"), "single", 1, PARAMS).row_wise


def test_a_model_of_all_rows_sees_only_rows_that_count():
    x = np.array([1.0, 2.0, 100.0, 3.0])
    mask = np.array([False, False, True, False])
    data = observe(x, x, mask=mask)
    model = FittedModel(prepare_model(from_mean), data, row_wise=False)
    np.testing.assert_allclose(model.values([1.0]), [-1, 0, np.nan, 1], atol=1e-14)
    np.testing.assert_allclose(model.residuals([1.0]), [2, 2, np.nan, 2], atol=1e-14)


@pytest.mark.quick(3)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    "how", ["mask", "NaN in y", "NaN in sigma", "fill value", "integer fill value", "masked array"]
)
def test_rows_that_were_left_out_have_no_residual(how, lazy):
    rng = np.random.default_rng(6)
    x, y, sigma = rng.uniform(0, 4, (3, 40, 25))
    sigma += 0.1
    out = rng.random((40, 25)) < 0.2
    options = {}
    if how == "mask":
        options["mask"] = out
    elif how == "masked array":
        y = np.ma.masked_array(y, out)
    elif how == "fill value":
        y[out], options["fill_value"] = -999.0, -999.0
    elif how == "integer fill value":
        y = np.where(out, -9, (10 * y)).astype(np.int16)
        options["fill_value"] = -9
    else:
        (y if how == "NaN in y" else sigma)[out] = np.nan
        options["nan_policy"] = "omit"
    plain = np.ma.getdata(y).astype(np.float64)
    arrays = [x, y, sigma]
    if lazy:
        arrays = [da.from_array(a, chunks=(17, 25)) for a in arrays]
    model = FittedModel(prepare_model(decay), observe(arrays[0], arrays[1], arrays[2], **options))

    residuals = model.residuals(PARAMS)
    if lazy:
        assert residuals.chunks == arrays[1].chunks
        assert residuals.dtype == np.float64
        residuals = residuals.compute()
    expected = np.where(out, np.nan, plain - decay_numpy(x))
    np.testing.assert_allclose(residuals, expected, atol=1e-13)

    binned = binning.binned(model, PARAMS, 5.0)
    assert binned.sums.n.sum() == np.count_nonzero(~out)
    counted = ~out
    errors = (plain - decay_numpy(x))[counted] / sigma[counted]
    assert binned.sums.total.sum() == pytest.approx(errors.sum(), rel=1e-10)

    jacobian = dense_jacobian(model.spec, x[counted], PARAMS) / sigma[counted][:, None]
    expected = (jacobian * errors[:, None] ** 2).T @ jacobian
    np.testing.assert_allclose(model.score_products(PARAMS), expected, rtol=1e-10)


def dense_jacobian(spec, x, params):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(jax.jacfwd(lambda p: call_model(spec, (x,), p)))(params))


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("loss", ["linear", "soft_l1", "cauchy"])
@pytest.mark.parametrize("weighted", [False, True])
def test_score_products_are_those_of_dense_scores(loss, weighted):
    """Each row's score is the gradient of its own cost, found by differentiating the cost."""
    rng = np.random.default_rng(7)
    n = 70_001
    x, y = rng.uniform(0, 4, n), rng.normal(1, 1, n)
    sigma = rng.uniform(0.5, 2, n) if weighted else None
    spec = replace(prepare_model(decay), loss=prepare_loss(loss, 0.7))
    rho = {
        "linear": lambda z: z,
        "soft_l1": lambda z: 2 * (jnp.sqrt(1 + z) - 1),
        "cauchy": jnp.log1p,
    }[loss]

    def cost(params):
        r = (call_model(spec, (x,), params) - y) / (1.0 if sigma is None else sigma)
        return 0.5 * 0.7**2 * rho((r / 0.7) ** 2)

    with jax.enable_x64(True):
        scores = np.asarray(jax.jit(jax.jacfwd(cost))(PARAMS))
    expected = scores.T @ scores
    layouts = {
        "memory": (x, y, sigma),
        "chunks": tuple(
            None if a is None else da.from_array(a, chunks=9_999) for a in (x, y, sigma)
        ),
    }
    for name, (u, v, s) in layouts.items():
        meat = FittedModel(spec, observe(u, v, s)).score_products(PARAMS)
        assert (meat.shape, meat.dtype) == ((3, 3), np.float64), name
        np.testing.assert_allclose(meat, expected, rtol=1e-10, err_msg=name)
    whole = FittedModel(spec, observe(x, y, sigma), row_wise=False).score_products(PARAMS)
    np.testing.assert_allclose(whole, expected, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("ask", ["score_products", "binned"])
def test_one_reading_of_the_data(ask, tmp_path):
    rng = np.random.default_rng(8)
    x = stored(tmp_path / "x", rng.uniform(0, 4, 3000), (170,))
    y = stored(tmp_path / "y", rng.normal(size=3000), (170,))
    model = FittedModel(prepare_model(decay), observe(x, y))
    if ask == "score_products":
        model.score_products(PARAMS)
    else:
        binning.binned(model, PARAMS, 1.0, x_range=(0.0, 4.0))
    assert set(x.store.reads.values()) == {1}
    assert set(y.store.reads.values()) == {1}
    assert len(y.store.reads) == 18
    if ask == "binned":  # without a range, x alone is read once more
        x.store.clear_counts()
        y.store.clear_counts()
        binning.binned(model, PARAMS, 1.0)
        assert set(x.store.reads.values()) == {2}
        assert set(y.store.reads.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_bins_equal_those_of_numpy(weighted):
    rng = np.random.default_rng(9)
    x = rng.uniform(0, 4, (300, 2000))
    y = decay_numpy(x) + rng.normal(size=x.shape) * 0.3
    y[0, :5] = 1e6  # beyond the axes
    sigma = rng.uniform(0.2, 0.4, 2000) if weighted else None
    spec = prepare_model(decay)
    lazily = tuple(da.from_array(a, chunks=(70, 900)) for a in (x, y))
    binned = binning.binned(FittedModel(spec, observe(x, y, sigma)), PARAMS, 0.3, bins=(40, 30, 20))
    chunked = binning.binned(
        FittedModel(spec, observe(*lazily, sigma)), PARAMS, 0.3, bins=(40, 30, 20)
    )

    z = ((y - decay_numpy(x)) / (0.3 if sigma is None else sigma)).ravel()
    u, v = x.ravel(), y.ravel()
    edges = binned.x_edges
    assert (edges[0], edges[-1]) == (x.min(), x.max())
    for got, other, other_edges in (
        (binned.sums.observed, v, binned.y_edges),
        (binned.sums.residuals, z, binned.z_edges),
    ):
        expected = np.histogram2d(u, other, bins=(edges, other_edges))[0]
        # A value within rounding of an edge may fall on either side of it.
        assert np.abs(got - expected).sum() <= 4
    position = np.clip(np.digitize(u, edges) - 1, 0, 39)
    n = np.bincount(position)
    np.testing.assert_array_equal(binned.sums.n, n)
    for got, power in ((binned.sums.total, 1), (binned.sums.squares, 2)):
        sums = np.bincount(position, z**power)
        np.testing.assert_allclose(got, sums, rtol=1e-9, atol=1e-9 * n.max())
    inside = (v >= binned.grid.y[0]) & (v <= binned.grid.y[1]) & (np.abs(z) <= 5)
    assert binned.sums.n_outside == np.count_nonzero(~inside)
    assert chunked.grid == binned.grid
    np.testing.assert_array_equal(chunked.sums.observed, binned.sums.observed)
    np.testing.assert_array_equal(chunked.sums.residuals, binned.sums.residuals)
    np.testing.assert_allclose(chunked.sums.total, binned.sums.total, rtol=1e-12, atol=1e-9)


@pytest.mark.cluster
def test_bins_and_scores_on_a_cluster(client):
    rng = np.random.default_rng(10)
    x, y = rng.uniform(0, 4, (2, 5000))
    spec = prepare_model(decay)
    here = FittedModel(spec, observe(x, y))
    lazy = observe(*(da.from_array(a, chunks=600) for a in (x, y)))
    there = FittedModel(spec, lazy, executor=executor_of(client))
    np.testing.assert_array_equal(
        binning.binned(there, PARAMS, 1.0).sums.observed,
        binning.binned(here, PARAMS, 1.0).sums.observed,
    )
    expected = here.score_products(PARAMS)
    np.testing.assert_allclose(there.score_products(PARAMS), expected, rtol=1e-12)


@pytest.mark.cluster
def test_a_result_reads_its_data_after_its_client_was_closed(cluster):
    rng = np.random.default_rng(12)
    x = rng.uniform(0, 4, 3000)
    y = decay(x, *PARAMS) + rng.normal(0, 0.1, x.size)
    x, y = (da.from_array(a, chunks=600) for a in (x, y))
    here = fit(decay, x, y, PARAMS)
    with Client(cluster, set_as_default=False) as client:
        there = fit(decay, x, y, PARAMS, client=client)
    np.testing.assert_array_equal(there.robust_pcov(), here.robust_pcov())
    name = there.names[0]
    assert there.profile(name).interval(1.0) == here.profile(name).interval(1.0)


def test_several_coordinates_are_binned_by_the_fitted_value():
    rng = np.random.default_rng(11)
    u, v = rng.normal(size=(200, 1)), rng.normal(size=(1, 300))
    y = 2 * u - 3 * v + rng.normal(size=(200, 300))
    spec = prepare_model(plane, None, "tuple", 2)
    params = np.array([2.0, -3.0])
    binned = binning.binned(FittedModel(spec, observe((u, v), y)), params, 1.0)
    fitted = 2 * u - 3 * v
    assert binned.grid.fitted
    assert binned.grid.x == pytest.approx((fitted.min(), fitted.max()), rel=1e-14)
    n = np.histogram(fitted, binned.x_edges)[0]
    assert np.abs(binned.sums.n - n).sum() <= 4


@pytest.mark.parametrize("x", [np.full(50, 2.0), np.zeros(50), np.full(50, 1e-300)])
def test_a_coordinate_without_extent(x):
    y = np.linspace(-1, 1, 50)
    binned = binning.binned(FittedModel(prepare_model(decay), observe(x, y)), PARAMS, 1.0)
    assert binned.sums.n.sum() == 50
    assert np.all(np.diff(binned.x_edges) > 0)


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda m: m.values(PARAMS), id="values"),
        pytest.param(lambda m: m.standard_errors(PARAMS, PCOV), id="errors"),
        pytest.param(lambda m: m.residuals(PARAMS), id="residuals"),
        pytest.param(lambda m: m.score_products(PARAMS), id="score_products"),
        pytest.param(lambda m: binning.binned(m, PARAMS, 1.0), id="binned"),
    ],
)
def test_a_loaded_result_has_no_data(ask):
    model = FittedModel.of_model(decay, ("a", "b", "c"), "single", 1)
    assert model.values(PARAMS, [1.0]).shape == (1,)
    with pytest.raises(InputError, match="data of the fit"):
        ask(model)


def test_inputs_are_never_changed():
    rng = np.random.default_rng(12)
    x, y = rng.uniform(0, 4, (2, 500))
    copies = x.copy(), y.copy()
    for array in (x, y):
        array.flags.writeable = False
    model = FittedModel(prepare_model(decay), observe(x, y))
    for result in (model.values(PARAMS), model.residuals(PARAMS)):
        assert not np.shares_memory(result, x)
        assert not np.shares_memory(result, y)
    np.testing.assert_array_equal(x, copies[0])
    np.testing.assert_array_equal(y, copies[1])


def test_decays_of_many_parameters_in_one_task_graph():
    """The model is one node of the graph, however many blocks there are."""
    x = da.ones(100_000, chunks=1000)
    model = FittedModel(prepare_model(decays, 3))
    graph = dict(model.values([0.1, 0.2, 0.3], x).__dask_graph__())
    assert sum(str(key).startswith("nlsq-model") for key in graph) == 1
    with dask.config.set(scheduler="sync"):
        assert model.values([0.1, 0.2, 0.3], x).max().compute() > 0
