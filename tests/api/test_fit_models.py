"""Several models on the same readings: the fits of each alone, and their comparison."""

from __future__ import annotations

import math
import threading
import warnings

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest

from nlsq_dask import (
    ConvergenceWarning,
    CovarianceWarning,
    InputError,
    InputTypeError,
    ModelComparison,
    ModelError,
    NotRowWiseError,
    UntraceableModelError,
    fit,
    fit_models,
)
from nlsq_dask._errors import StartNotFiniteError
from nlsq_dask.io.chunks import spread_blocks
from tests.support.counting_store import stored
from tests.support.same_result import assert_same_result


def constant(x, a):
    return a * jnp.ones_like(x)


def line(x, a, b):
    return a + b * x


def decay(x, a, b):
    return a * jnp.exp(-b * x)


def decay_on_background(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def relative(x, a, b):
    """Not row-wise: the first of all rows enters every value."""
    return a + b * (x - x[0])


MODELS = [constant, line, decay, decay_on_background]
STARTS = [[0.0], None, [5.0, 0.1], {"a": 1.0, "b": 3.0, "c": 0.0}]


def data(n_rows=20_000, seed=3):
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0.0, 4.0, n_rows))
    return x, 2.5 * np.exp(-1.3 * x) + 0.5 + rng.normal(0.0, 0.1, n_rows)


def lazy(*arrays, chunks=999):
    return tuple(da.from_array(a, chunks=chunks) for a in arrays)


def assert_those_of_separate_fits(comparison, models, x, y, starts, **options):
    for i, (model, p0) in enumerate(zip(models, starts, strict=True)):
        alone = fit(model, x, y, p0, **options)
        assert_same_result(comparison[i], alone)
        assert comparison[i].aic == alone.aic
        assert comparison[i].r_squared == alone.r_squared
        assert comparison[i].n_skipped == alone.n_skipped
        assert comparison[i].strategy == alone.strategy
    # The reading of all rows for one model's guess comes before the others' first.
    guesses = [p0 is None and hasattr(m, "guess") for m, p0 in zip(models, starts, strict=True)]
    assert 0 <= comparison.n_passes - max(r.n_passes for r in comparison) <= any(guesses)


# The residuals of a model that misses the data are no noise, but a fit alone cannot know.
@pytest.mark.slow
@pytest.mark.every(6)
@pytest.mark.filterwarnings("ignore::nlsq_dask.LossScaleWarning")
@pytest.mark.parametrize(
    "options",
    [
        dict(strategy="standard"),
        dict(strategy="chunked"),
        dict(strategy="streaming"),
        dict(strategy="chunked", pilot=True),
        dict(strategy="streaming", pilot=True),
        dict(strategy="standard", n_starts=5, seed=4),
        dict(strategy="streaming", n_starts=5, seed=4),
        dict(sigma=0.1, absolute_sigma=True, loss="soft_l1", f_scale=2.0),
        dict(method="lm", stat_tol=0.1, ftol=None),
        dict(workflow="fast", max_nfev=100),
    ],
    ids=str,
)
def test_the_bits_of_separate_fits(options):
    x, y = data()
    comparison = fit_models(MODELS, x, y, STARTS, **options)

    assert isinstance(comparison, ModelComparison)
    assert_those_of_separate_fits(comparison, MODELS, x, y, STARTS, **options)


@pytest.mark.slow
def test_each_fit_ends_when_it_has_converged():
    comparison = fit_models(MODELS, *data(), STARTS)
    passes = [result.n_passes for result in comparison]
    assert len(set(passes)) > 2
    assert comparison.n_passes == max(passes)
    assert all(result.success for result in comparison)


@pytest.mark.slow
@pytest.mark.parametrize("pilot", [False, True])
def test_the_bits_of_separate_fits_of_dask_arrays(pilot):
    x, y = data()
    y[::11] = np.nan
    x, y = lazy(x, y)
    options = dict(nan_policy="omit", pilot=pilot)
    comparison = fit_models(MODELS, x, y, STARTS, **options)

    assert comparison[0].n_skipped == 1819
    assert_those_of_separate_fits(comparison, MODELS, x, y, STARTS, **options)


@pytest.mark.cluster
def test_the_bits_of_separate_fits_on_a_cluster(client):
    x, y = lazy(*data())
    models, starts = MODELS[1::2], STARTS[1::2]
    options = dict(client=client, pilot=False)
    comparison = fit_models(models, x, y, starts, **options)
    assert_those_of_separate_fits(comparison, models, x, y, starts, **options)


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("pilot", [False, True])
def test_the_data_are_read_as_often_as_by_the_longest_fit(tmp_path, pilot):
    x, y = (
        stored(tmp_path / name, values, 1000) for name, values in zip("xy", data(), strict=True)
    )
    alone = []
    for model, p0 in zip(MODELS, STARTS, strict=True):
        fit(model, x, y, p0, pilot=pilot, cache=False)
        alone.append(sum(y.store.reads.values()))
        y.store.clear_counts()
    comparison = fit_models(MODELS, x, y, STARTS, pilot=pilot, cache=False)

    assert sum(y.store.reads.values()) == max(alone) < sum(alone)
    assert min(y.store.reads.values()) == comparison.n_passes

    y.store.clear_counts()
    kept = fit_models(MODELS, x, y, STARTS, pilot=pilot)
    assert min(y.store.reads.values()) == 1
    for name, result in kept.items():
        assert_same_result(result, comparison[name])


@pytest.mark.slow
def test_a_model_whose_rows_depend_on_each_other_is_fitted_beside_others():
    x, y = data(3000)
    models, starts = [decay, relative, line], [[1, 1], None, None]
    comparison = fit_models(models, x, y, starts)
    assert_those_of_separate_fits(comparison, models, x, y, starts)


@pytest.mark.slow
def test_correlated_observations():
    x, y = data(60)
    sigma = 0.01 * np.exp(-np.abs(np.subtract.outer(x, x)))
    starts = [None, [1, 1]]
    comparison = fit_models([line, decay], x, y, starts, sigma=sigma)
    assert_those_of_separate_fits(comparison, [line, decay], x, y, starts, sigma=sigma)


class Guessing:
    """A model that knows where to start."""

    def __call__(self, x, a, b):
        return a * jnp.exp(-b * x)

    def guess(self, x, y):
        return [float(y.max()), 1.0 + float(x.min())]


@pytest.mark.slow
@pytest.mark.parametrize("form", [lambda *a: a, lazy])
def test_models_guess_from_one_sample(form):
    x, y = form(*data())
    models = [Guessing(), line]
    comparison = fit_models(models, x, y)
    assert_those_of_separate_fits(comparison, models, x, y, [None, None])


@pytest.mark.every(3)
@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("pilot", [None, True, False])
def test_a_guess_from_all_rows_is_that_model_s_own(tmp_path, order, pilot):
    """The others keep the sample, and the bits, that they have alone; readings are counted."""
    x, y = (stored(tmp_path / name, values, 500) for name, values in zip("xy", data(), strict=True))
    models, starts = [Guessing(), decay_on_background][::order], [None, [5, 3, 1]][::order]
    for options in ({}, {"max_nfev": 1}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of max_nfev
            y.store.clear_counts()
            comparison = fit_models(models, x, y, starts, pilot=pilot, cache=False, **options)
            assert min(y.store.reads.values()) == comparison.n_passes
            alone = [
                fit(model, x, y, p0, pilot=pilot, cache=False, **options)
                for model, p0 in zip(models, starts, strict=True)
            ]
        for mine, other in zip(comparison, alone, strict=True):
            assert_same_result(mine, other)
        guessed, other = (result.n_passes for result in alone[::order])
        assert comparison.n_passes == max(guessed, other + 1)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("n_blocks", [1, 40])
def test_a_resumed_comparison_has_the_passes_of_one_that_was_not(tmp_path, n_blocks, order):
    """The reading for a guess among them, and that of a pilot of the only block."""
    x, y = (da.from_array(a, chunks=-(-a.size // n_blocks)) for a in data(120_000))
    models, starts = [Guessing(), decay_on_background][::order], [None, [5, 3, 1]][::order]
    whole = fit_models(models, x, y, starts, checkpoint=tmp_path)
    for folder in tmp_path.iterdir():
        max(folder.iterdir()).unlink()
    resumed = fit_models(models, x, y, starts, checkpoint=tmp_path, resume=True)
    for mine, other in zip(resumed, whole, strict=True):
        assert_same_result(mine, other)
    assert resumed.n_passes == whole.n_passes


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1])
def test_few_rows_that_count_are_enough_for_some_models(tmp_path, order):
    """What one model has to read for its sample is none of the others' concern."""
    x, y = data(64_000)
    sampled = spread_blocks([64], 16)
    blocks = np.arange(y.size) // 1000
    y[np.isin(blocks, sampled) | (np.arange(y.size) % 331 != 0)] = np.nan
    y[[1000 * sampled[7] + 9, 1000 * sampled[15] + 30]] = 0.6  # all that the usual sample shows
    x, y = (stored(tmp_path / n, a, 1000) for n, a in (("x", x), ("y", y)))
    models = [constant, decay_on_background][::order]
    starts = [[0.0], [5, 3, 1]][::order]
    options = dict(nan_policy="omit", pilot=True, cache=False)
    comparison = fit_models(models, x, y, starts, **options)
    assert min(y.store.reads.values()) == comparison.n_passes
    for mine, model, p0 in zip(comparison, models, starts, strict=True):
        assert_same_result(mine, fit(model, x, y, p0, **options))
    few, more = (result.pilot.n_rows for result in list(comparison)[::order])
    assert few == 2 < 3 <= more


def test_what_differs_from_model_to_model_is_given_by_position_or_name():
    x, y = data()
    named = {"flat": constant, "curved": decay_on_background, "line": line}
    by_name = fit_models(
        named,
        x,
        y,
        {"curved": [1, 1, 1]},
        bounds={"curved": ([0, 0, 0.6], np.inf)},
        fixed={"line": {"b": -0.4}},
        ties={"curved": {"b": "a"}},
    )
    by_position = fit_models(
        list(named.values()),
        x,
        y,
        [None, [1, 1, 1], None],
        bounds=[None, ([0, 0, 0.6], np.inf), None],
        fixed=[None, None, {"b": -0.4}],
        ties=(None, {"b": "a"}, None),
    )
    curved = fit(
        decay_on_background, x, y, [1, 1, 1], bounds=([0, 0, 0.6], np.inf), ties={"b": "a"}
    )

    assert by_name.names == ("flat", "curved", "line")
    assert by_position.names == ("constant", "decay_on_background", "line")
    for mine, other in zip(by_name, by_position, strict=True):
        assert_same_result(mine, other)
    assert_same_result(by_name["curved"], curved)
    assert by_name["line"].fixed == ("b",)
    assert by_name["curved"].n_free == 2


def test_one_progress_line_shows_the_readings_of_all(capsys):
    comparison = fit_models(MODELS, *lazy(*data(), chunks=5000), STARTS, progress=True)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert shown.startswith(f"4 of 4 models converged · {comparison.n_passes} passes")


def test_index_by_position_and_name():
    x, y = data(500)
    comparison = fit_models({"one": line, "two": decay}, x, y)
    assert comparison["two"] is comparison[1] is comparison[-1] is list(comparison)[1]
    assert comparison[:1] == (comparison["one"],)
    assert len(comparison) == 2
    assert dict(comparison.items()) == {"one": comparison[0], "two": comparison[1]}
    with pytest.raises(KeyError, match="no model 'three': the models are one and two"):
        comparison["three"]
    with pytest.raises(IndexError):
        comparison[2]


def test_models_of_one_name_are_told_apart_by_their_positions():
    x, y = data(500)
    models = [lambda x, a: a * x, line, lambda x, a: a + x]
    assert fit_models(models, x, y).names == ("lambda [0]", "line", "lambda [2]")


@pytest.mark.slow
@pytest.mark.parametrize("absolute", [False, True])
def test_the_criteria_of_nested_polynomials_are_those_of_the_textbook(absolute):
    rng = np.random.default_rng(8)
    x = np.linspace(-1.0, 1.0, 400)
    y = 1.0 + 0.5 * x - 0.2 * x**2 + rng.normal(0.0, 0.3, x.size)

    def polynomial(degree):
        names = ", ".join(f"c{i}" for i in range(degree + 1))
        terms = " + ".join(f"c{i} * x**{i}" for i in range(degree + 1))
        return eval(f"lambda x, {names}: {terms}")

    models = {f"degree {d}": polynomial(d) for d in range(1, 6)}
    comparison = fit_models(models, x, y, sigma=0.3, absolute_sigma=absolute)

    aic, bic = [], []
    for degree in range(1, 6):
        coefficients = np.polynomial.polynomial.polyfit(x, y, degree)
        fitted = np.polynomial.polynomial.polyval(x, coefficients)
        chi2 = float(np.sum(((y - fitted) / 0.3) ** 2))
        deviance = chi2 if absolute else x.size * math.log(chi2 / x.size)
        aic.append(deviance + 2 * (degree + 1))
        bic.append(deviance + (degree + 1) * math.log(x.size))
    weights = np.exp(-(np.array(aic) - min(aic)) / 2)
    np.testing.assert_allclose([r.aic for r in comparison], aic, rtol=1e-9)
    np.testing.assert_allclose([r.bic for r in comparison], bic, rtol=1e-9)
    np.testing.assert_allclose(comparison.delta_aic, np.array(aic) - min(aic), atol=1e-7)
    np.testing.assert_allclose(comparison.akaike_weights, weights / weights.sum(), rtol=1e-7)
    assert comparison.best_name == f"degree {1 + int(np.argmin(aic))}"
    assert comparison.best is comparison[comparison.best_name]


def test_the_table_has_the_best_model_first():
    x, y = data()
    comparison = fit_models(MODELS, x, y, STARTS)
    title, header, *rows = str(comparison).splitlines()
    assert title == f"4 models of 20,000 rows, fitted in {comparison.n_passes} readings"
    columns = header.split("  ")
    assert [c.strip() for c in columns if c] == [
        "model",
        "parameters",
        "chi2",
        "reduced chi2",
        "AIC",
        "ΔAIC",
        "weight",
        "BIC",
        "converged",
    ]
    assert [row.split()[0] for row in rows] == ["*", "decay", "line", "constant"]
    assert [row[2:].split()[0] for row in rows] == [
        "decay_on_background",
        "decay",
        "line",
        "constant",
    ]
    best = comparison.best
    assert rows[0].split() == [
        "*",
        "decay_on_background",
        "3",
        f"{best.chi2:.6g}",
        f"{best.reduced_chi2:.6g}",
        f"{best.aic:.8g}",
        "0",
        "1",
        f"{best.bic:.8g}",
        "yes",
    ]
    html = comparison._repr_html_()
    assert html.count("<tr>") == 5
    assert html.index("decay_on_background") < html.index(">line<")
    assert repr(comparison) == (
        "ModelComparison(constant, line, decay, decay_on_background; best: decay_on_background)"
    )


def test_names_are_escaped_in_notebooks():
    x, y = data(100)
    assert "&lt;b&gt;" in fit_models({"<b>": line}, x, y)._repr_html_()


def test_perfect_fits_are_equally_good_and_the_smaller_one_is_best():
    x = np.arange(8.0)
    comparison = fit_models(
        {
            "larger": lambda x, a, b: a * x + b * x**2,
            "smaller": lambda x, a: a * x,
            "none": constant,
        },
        x,
        2.0 * x,
        [[2.0, 0.0], [2.0], [0.0]],
    )
    assert comparison["larger"].aic == comparison["smaller"].aic == -math.inf
    assert comparison.best_name == "smaller"
    assert comparison.delta_aic.tolist() == [0.0, 0.0, math.inf]
    assert comparison.akaike_weights.tolist() == [0.5, 0.5, 0.0]


def test_a_warning_names_its_model_and_points_to_the_caller():
    x, y = data()
    with pytest.warns(ConvergenceWarning, match="^model 'decay': ") as caught:
        comparison = fit_models([line, decay], x, y, [None, [9, 9]], max_nfev=4)
    assert [w.filename for w in caught] == [__file__]
    lines = {line[2:].split()[0]: line for line in str(comparison).splitlines()[2:]}
    assert lines["decay"].endswith("  NO")
    assert lines["line"].endswith("  yes")
    with pytest.warns(CovarianceWarning, match="^model 'twice': "):
        fit_models({"twice": lambda x, a, b: (a + b) * x, "line": line}, x, y)


def fails_here(x, a, b):
    return float(a) * x + b


def sorted_rows(x, a):
    return a * jnp.sort(x)


@pytest.mark.parametrize(
    ("model", "p0", "kind", "message"),
    [
        (fails_here, None, UntraceableModelError, "^model 'odd': the model fails_here"),
        (lambda x, a: a * x[:3], None, ModelError, "^model 'odd': the model lambda"),
        (decay, [1.0], ModelError, "^model 'odd': the model decay takes 2"),
        (lambda x, a: a / (x - x), [1.0], StartNotFiniteError, "^model 'odd': "),
        (constant, {"b": 1.0}, InputError, "^model 'odd': "),
    ],
)
def test_an_error_of_one_model_names_it_and_ends_the_others(model, p0, kind, message):
    x, y = data()
    with pytest.raises(kind, match=message):
        fit_models({"line": line, "odd": model, "decay": decay}, x, y, {"odd": p0})
    assert not [t for t in threading.enumerate() if t.name.startswith("nlsq-fit")]


def test_a_model_that_cannot_be_streamed_is_named():
    with pytest.raises(NotRowWiseError, match="^model 'sorted_rows': "):
        fit_models([line, sorted_rows], *lazy(*data()))


@pytest.mark.cluster
def test_a_model_that_cannot_be_sent_is_named(client):
    lock = threading.Lock()

    def holding(x, a):
        return a * x if lock else x

    with pytest.raises(ModelError, match="'?held'?"):
        fit_models({"line": line, "held": holding}, *lazy(*data()), client=client)


def test_values_that_are_not_finite_are_found_once_and_blamed_on_the_data():
    x, y = data()
    y[17] = np.inf
    with pytest.raises(InputError, match=r"^y .*17"):
        fit_models([line, decay], x, y)


@pytest.mark.parametrize(
    ("models", "options", "kind", "message"),
    [
        ([], {}, InputError, "models is empty"),
        ({}, {}, InputError, "models is empty"),
        (line, {}, InputTypeError, "pass a list of models"),
        ("line", {}, InputTypeError, "pass a list of models"),
        ({1: line}, {}, InputTypeError, "names that are strings"),
        ([line, decay], dict(p0=[1.0]), InputError, "p0 has 1 entries for 2 models"),
        ([line, decay], dict(p0=1.0), InputTypeError, "p0 = 1.0 is not one value a model"),
        ([line], dict(bounds="free"), InputTypeError, "bounds = 'free' is not one value a model"),
        ([line], dict(fixed={"a": 1.0}), InputError, "fixed has entries for 'a', but the models"),
        ([line], dict(ties={"a": "b"}), InputError, "ties has entries for 'a', but the models"),
        ([line], dict(resume=True), InputError, "resume=True needs checkpoint"),
        ([line, 3], {}, InputTypeError, "^model 'int': "),
    ],
)
def test_arguments_that_cannot_be_used(models, options, kind, message):
    x, y = data(100)
    with pytest.raises(kind, match=message):
        fit_models(models, x, y, **options)


def test_each_model_goes_on_from_its_own_checkpoint(tmp_path):
    x, y = data()
    options = dict(p0=[[9.0, 9.0], [9.0, 9.0, 0.0]], checkpoint=tmp_path, ftol=1e-12)
    models = [decay, decay_on_background]
    expected = fit_models(models, x, y, options["p0"], ftol=1e-12)
    complete = fit_models(models, x, y, **options)
    for name in ("model-0", "model-1"):
        newest = max((tmp_path / name).iterdir())
        newest.unlink()
    resumed = fit_models(models, x, y, **options, resume=True)

    assert [result.checkpoint for result in resumed] == [
        str(tmp_path / name) for name in ("model-0", "model-1")
    ]
    for i in range(2):
        assert_same_result(complete[i], expected[i])
        assert_same_result(resumed[i], expected[i])
