"""Names, sums, identity and messages of the models, and what ``fit`` makes of them."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys

import cloudpickle
import dask.array as da
import numpy as np
import pytest
from scipy.optimize import curve_fit

from nlsq_dask import InputError, InputTypeError, fit, models
from nlsq_dask.user_model.identity import identify
from nlsq_dask.user_model.model import prepare_model
from nlsq_dask.user_model.signature import parameter_names
from tests.models.problems import DRAWS, SUMS, draw_problem

ALL = [cls() for cls in DRAWS] + SUMS
DIFFERENT = [
    *ALL,
    models.Gaussian(prefix="a_"),
    models.Gaussian(prefix="b_"),
    models.Gaussian() + models.Gaussian(),
    models.Gaussian() + models.Lorentzian(),
    models.Lorentzian() + models.Gaussian(),
    models.Gaussian() + models.Gaussian() + models.Gaussian(),
]


def structure_of(model):
    return {"structure": "tuple", "n_coords": 2} if model.n_coords == 2 else {}


@pytest.mark.parametrize("model", ALL, ids=repr)
def test_signature_shows_the_names_that_fit_takes(model):
    assert parameter_names(model) == model.names
    assert list(inspect.signature(model).parameters) == ["x", *model.names]
    assert len(set(model.names)) == len(model.names)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (models.Gaussian(prefix="g_"), "g_amplitude g_center g_sigma"),
        (models.Gaussian() + models.Constant(), "amplitude center sigma offset"),
        (
            models.Gaussian() + models.Constant() + models.Gaussian(),
            "amplitude_1 center_1 sigma_1 offset amplitude_2 center_2 sigma_2",
        ),
        (
            models.Constant() + (models.Linear(prefix="a_") + models.Constant()),
            "offset_1 a_slope a_intercept offset_2",
        ),
        (
            # The number is of the term, and goes to names that no other has, too.
            models.Logistic() + (models.Linear() + models.Sinusoid()),
            "amplitude_1 center_1 rate_1 slope intercept amplitude_2 frequency_2 phase_2",
        ),
        (
            models.Gaussian(prefix="a_") + models.Gaussian(prefix="b_"),
            "a_amplitude a_center a_sigma b_amplitude b_center b_sigma",
        ),
        (
            models.Constant(prefix="a_") + models.Constant() + models.Constant(prefix="a_"),
            "a_offset_1 offset a_offset_2",
        ),
    ],
    ids=repr,
)
def test_names_of_sums(model, names):
    assert " ".join(model.names) == names


def test_no_name_ends_in_a_digit_so_that_numbers_are_unique():
    assert not [n for cls in DRAWS for n in cls.base_names if n[-1].isdigit()]


def test_nested_sums_are_one_sum():
    a, b, c = models.Gaussian(), models.Lorentzian(), models.Constant()
    assert (a + b) + c == a + (b + c) == models.Sum([a, models.Sum([b, c])])
    assert repr((a + b) + c) == "Gaussian() + Lorentzian() + Constant()"


def test_models_are_equal_as_values():
    assert models.Gaussian() == models.Gaussian()
    assert len(set(DIFFERENT)) == len(DIFFERENT)
    assert len({*DIFFERENT, *map(copy.deepcopy, DIFFERENT)}) == len(DIFFERENT)
    assert models.Gaussian() != "Gaussian()"


@pytest.mark.parametrize("model", DIFFERENT, ids=repr)
def test_copies_through_pickle_are_the_same_model(model):
    for copied in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        cloudpickle.loads(cloudpickle.dumps(model)),
    ):
        assert copied == model
        assert copied.names == model.names
        assert inspect.signature(copied) == inspect.signature(model)
        assert identify(copied).digest == identify(model).digest is not None


@pytest.mark.slow
def test_different_models_have_different_tokens_and_equal_ones_the_same():
    tokens = [prepare_model(model, **structure_of(model)).token for model in DIFFERENT]
    assert len(set(tokens)) == len(tokens)
    term = models.Gaussian(prefix="".join(["g", "_"]))
    assert identify(term + term) == identify(
        models.Gaussian(prefix="g_") + models.Gaussian(prefix="g" + "_")
    )


@pytest.mark.slow
def test_tokens_are_the_same_in_another_process():
    program = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from nlsq_dask import models\n"
        "from nlsq_dask.user_model.identity import identify\n"
        "g = models.Gaussian(prefix='g_')\n"
        "for model in (models.Voigt(), g + models.Linear(), g + g):\n"
        "    print(identify(model).digest)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    g = models.Gaussian(prefix="g_")
    same = [identify(m).digest for m in (models.Voigt(), g + models.Linear(), g + g)]
    assert done.stdout.split() == same


@pytest.mark.parametrize("model", ALL, ids=repr)
def test_models_are_traced_as_they_are(model):
    spec = prepare_model(model, **structure_of(model))
    assert spec.style == "jax"
    assert spec.names == model.names


def test_user_class_is_a_model_too():
    class Parabola(models.Linear):
        base_names = ("curvature", "height")

        def value(self, xp, coords, *params):
            return params[0] * xp.square(coords[0]) + params[1]

        def columns(self, coords, *shape):
            return coords[0] ** 2, np.ones_like(coords[0])

    model = models.Gaussian() + Parabola()
    assert model.names[-2:] == ("curvature", "height")
    x = np.linspace(-3, 3, 200)
    guess = model.guess(x, model(x, 2.0, 0.5, 0.2, 1.0, 3.0))
    assert guess["curvature"] == pytest.approx(1.0, rel=0.1)
    assert cloudpickle.loads(cloudpickle.dumps(model)).names == model.names


# Messages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [3.0, lambda x, a: a * x, None, np.ones(2)])
def test_only_models_are_added(other):
    for add in (lambda: models.Gaussian() + other, lambda: other + models.Gaussian()):
        with pytest.raises(InputTypeError, match=r"cannot be added to a model.*Constant\(\)"):
            add()
    with pytest.raises(InputTypeError, match="cannot be added"):
        models.Sum([models.Gaussian(), other])


def test_an_empty_sum_is_refused():
    with pytest.raises(InputError, match="at least one term"):
        models.Sum([])


def test_terms_are_of_one_number_of_coordinates():
    with pytest.raises(InputError, match=r"Gaussian2D\(\) of 2, Linear\(\) of 1"):
        models.Gaussian2D() + models.Constant() + models.Linear()


@pytest.mark.parametrize("prefix", ["1_", "a b", "g-", 3, None])
def test_prefix_makes_names(prefix):
    with pytest.raises(InputError, match=r"prefix is .* letters, digits and underscores"):
        models.Gaussian(prefix=prefix)


@pytest.mark.parametrize("params", [(), (1.0, 2.0), (1.0, 2.0, 3.0, 4.0)])
def test_number_of_parameters_is_checked(params):
    with pytest.raises(InputTypeError, match=rf"amplitude, center and sigma.*{len(params)} were"):
        models.Gaussian()(np.ones(3), *params)


def test_number_of_coordinates_is_checked():
    x = np.ones(3)
    with pytest.raises(InputTypeError, match=r"1 coordinate.*x has 2: pass one array"):
        models.Gaussian()((x, x), 1.0, 0.0, 1.0)
    with pytest.raises(InputTypeError, match=r"2 coordinate.*x has 3: pass a tuple of 2"):
        models.Gaussian2D().guess((x, x, x), x)


def test_guess_says_what_is_wrong_with_data():
    with pytest.raises(InputError, match=r"\(3,\) does not broadcast with y of shape \(4,\)"):
        models.Gaussian().guess(np.ones(3), np.ones(4))
    for nothing in (np.array([]), np.array([np.nan])):
        with pytest.raises(InputError, match="no row of x and y is finite"):
            models.Gaussian().guess(nothing, nothing)


# Fits -------------------------------------------------------------------------------------------


@pytest.mark.every(4)
@pytest.mark.slow
@pytest.mark.parametrize("model", ALL, ids=repr)
def test_fit_from_the_guess_is_scipys(model):
    x, y, _ = draw_problem(model, seed=4, noise=0.02)
    guess = model.guess(x, y)
    ours = fit(model, x, y, guess, xtol=1e-12, ftol=1e-12)
    popt, pcov = curve_fit(
        lambda x, *p: model(tuple(x) if model.n_coords == 2 else x, *p),
        x,
        y,
        list(guess.values()),
        xtol=1e-12,
        ftol=1e-12,
    )
    assert ours.success
    assert ours.names == model.names
    errors = np.sqrt(pcov.diagonal())
    np.testing.assert_allclose((ours.popt - popt) / errors, 0, atol=1e-3)
    np.testing.assert_allclose(ours.perr, errors, rtol=1e-3)


@pytest.mark.thorough
def test_streamed_sum_of_models_is_the_fit_in_memory():
    model = models.Voigt() + models.Gaussian() + models.Linear()
    rng = np.random.default_rng(2)
    x = np.linspace(-5, 5, 3000)
    y = model(x, 5.0, -2.0, 0.4, 0.3, 3.0, 1.5, 0.6, 0.2, 1.0) + rng.normal(0, 0.05, x.size)
    p0 = model.guess(x, y)
    in_memory = fit(model, x, y, p0)
    streamed = fit(model, da.from_array(x, chunks=700), da.from_array(y, chunks=700), p0)
    assert streamed.strategy == "streaming"
    # A streamed fit ends within a hundredth of a standard error of the optimum.
    np.testing.assert_allclose((streamed.popt - in_memory.popt) / in_memory.perr, 0, atol=0.01)
