"""Models and parameters of lmfit: the same answers as lmfit's, and what is refused."""

from __future__ import annotations

import pickle
import sys

import cloudpickle
import numpy as np
import pytest

import nlsq_dask
from nlsq_dask import InputError, InputTypeError, MissingLibraryError, ModelError
from nlsq_dask.api.lmfit_input import without_lmfit
from nlsq_dask.core.constraints import reduce_parameters
from nlsq_dask.fitting.options import InputOptions

lmfit = pytest.importorskip("lmfit")
models = pytest.importorskip("lmfit.models")

X = np.linspace(-5.0, 5.0, 101)

#: Line shapes of lmfit that are evaluated as lmfit does, with values of parameters without default.
SHAPES = (
    *("Gaussian", "Lorentzian", "SplitLorentzian", "Voigt", "PseudoVoigt", "Moffat", "Pearson7"),
    *("StudentsT", "BreitWigner", "DampedHarmonicOscillator", "SkewedGaussian", "Doniach"),
    *("ExponentialGaussian", "SkewedVoigt", "ThermalDistribution", "Step", "Rectangle", "Sine"),
    *("Exponential", "Linear", "Quadratic", "Constant", "DampedOscillator"),
)


def peaks():
    """A sum of two peaks and a constant, its parameters, and data with noise."""
    model = models.GaussianModel(prefix="a_") + models.LorentzianModel(prefix="b_")
    model += models.ConstantModel()
    params = model.make_params(
        a_amplitude=3, a_center=-1, a_sigma=0.5, b_amplitude=2, b_center=1, b_sigma=0.4, c=0.1
    )
    y = model.eval(params, x=X) + np.random.default_rng(1).normal(0, 0.02, X.size)
    return model, params, y


def assert_same_parameters(found, expected):
    assert set(found) == set(expected)
    for name, parameter in expected.items():
        assert found[name].value == pytest.approx(parameter.value, rel=1e-4, abs=1e-6), name
        assert found[name].stderr == pytest.approx(parameter.stderr, rel=0.02, abs=1e-9), name
        assert (found[name].vary, found[name].expr) == (parameter.vary, parameter.expr), name
        # The bounds of a tied parameter narrow those of the parameter that it is tied to.
        assert parameter.min <= found[name].min < found[name].max <= parameter.max, name


@pytest.mark.slow
def test_fixed_bounded_and_tied_parameters_end_as_in_lmfit():
    model, params, y = peaks()
    params["a_center"].set(vary=False)
    params["a_sigma"].set(min=0.1, max=2.0)
    params.add("total", value=5.1)  # a parameter that only an expression uses
    params["b_amplitude"].expr = "total - a_amplitude"
    params["b_sigma"].expr = "2 * a_sigma - sqrt(0.25)"
    weights = np.full(X.size, 50.0)
    expected = model.fit(y, params, x=X, weights=weights)
    result = nlsq_dask.fit(model, X, y, params, sigma=1 / weights)
    assert result.success
    assert result.chi2 == pytest.approx(expected.chisqr, rel=1e-6)
    found = result.to_lmfit_params()
    assert_same_parameters(found, expected.params)
    r = expected.params["a_amplitude"].correl["a_sigma"]
    assert found["a_amplitude"].correl["a_sigma"] == pytest.approx(r, abs=0.02)


def test_each_series_takes_a_model_of_lmfit_as_one_series_does():
    model, params, y = peaks()
    params["a_center"].set(vary=False)
    params["a_sigma"].set(min=0.1, max=2.0)
    params["b_sigma"].expr = "a_sigma - 0.1"
    maps = nlsq_dask.fit_each(model, X, np.stack([y, 2 * y], axis=1), params)
    one = nlsq_dask.fit(model, X, y, params)
    assert maps.names == one.names
    np.testing.assert_allclose(maps.popt.array[:, 0], one.popt, atol=1e-3 * one.perr.max())
    np.testing.assert_allclose(maps["a_amplitude"][1], 2 * one.popt[0], rtol=1e-4)
    assert maps.at(0).fixed == ("a_center",)


def test_a_function_takes_parameters_of_lmfit():
    params = lmfit.Parameters()
    params.add("b", value=0.5, min=0)
    params.add("a", expr="1 - b")
    params.add("ratio", expr="a / b")  # of no use to the function, and not linear

    def line(x, a, b):
        return a * x + b

    result = nlsq_dask.fit(line, X, 0.3 * X + 0.7, params)
    np.testing.assert_allclose(result.popt, [0.3, 0.7], rtol=1e-8)


@pytest.mark.parametrize("name", SHAPES)
def test_line_shapes_have_the_values_of_lmfit(name):
    model = getattr(models, f"{name}Model")()
    params = model.make_params()
    for parameter in params.values():
        if parameter.expr is None:
            parameter.value = 0.7 + 0.1 * len(parameter.name)
    call = without_lmfit(model, X, params, InputOptions())
    values = [params[name].value for name in call.model.names]
    expected = np.broadcast_to(model.eval(params, x=X), X.shape)
    np.testing.assert_allclose(call.model(X, *values), expected, rtol=1e-9, atol=1e-12)
    assert call.inputs.bounds is not None


@pytest.mark.slow
def test_a_voigt_line_is_traced():
    model = models.VoigtModel()
    params = model.make_params(amplitude=2, center=0.3, sigma=0.8)
    params["gamma"].set(expr="", value=0.4, vary=True)
    y = model.eval(params, x=X)
    params["amplitude"].value, params["gamma"].value = 1.5, 0.6
    result = nlsq_dask.fit(model, X, y, params)
    np.testing.assert_allclose(result.popt, [2, 0.3, 0.8, 0.4], rtol=1e-6)
    assert cloudpickle.loads(cloudpickle.dumps(result.fitted.spec.function))


def test_several_coordinates_by_name():
    def plane(u, v, a, b):
        return a * u + b * v

    model = lmfit.Model(plane, independent_vars=["u", "v"])
    params = model.make_params(a=1, b=1)
    u, v = X[:, None], X[None, :5]
    for x in ({"v": v, "u": u}, (u, v)):
        call = without_lmfit(model, x, params, InputOptions())
        np.testing.assert_allclose(call.model(call.x, 2.0, 3.0), 2 * u + 3 * v)
    with pytest.raises(InputError, match="the model of lmfit has u and v"):
        nlsq_dask.fit(model, {"u": u}, u + v, params)


def test_rows_with_nan_are_left_out_where_the_model_says_so():
    model = models.LinearModel(nan_policy="omit")
    call = without_lmfit(model, X, model.make_params(slope=1, intercept=0), InputOptions())
    assert call.inputs.nan_policy == "omit"


def test_what_is_refused():
    model, params, y = peaks()

    def refused(kind, said, change=None, p0=params, **options):
        given = p0.copy() if isinstance(p0, lmfit.Parameters) else p0
        if change is not None:
            change(given)
        with pytest.raises(kind, match=said):
            nlsq_dask.fit(model, X, y, given, **options)

    square = "a_sigma, 'a_amplitude \\*\\* 2', is not linear"
    refused(InputError, square, lambda p: p["a_sigma"].set(expr="a_amplitude ** 2"))
    refused(InputError, "is not linear", lambda p: p["a_sigma"].set(expr="1 / a_amplitude"))
    refused(InputError, "is not linear", lambda p: p["a_sigma"].set(expr="sqrt(a_amplitude)"))
    refused(InputError, "lack b_center", lambda p: p.pop("b_center"))
    refused(InputTypeError, "lmfit.Parameters", p0=[1.0] * 7)
    refused(InputError, "bounds and fixed were passed", bounds=(0, 9), fixed={"c": 0.0})
    start = models.GaussianModel().make_params()
    start["center"].value = -np.inf
    with pytest.raises(InputError, match="center has the value -inf"):
        nlsq_dask.fit(models.GaussianModel(), X, y, start)


def test_models_that_are_no_functions_of_arrays_are_named():
    expression = models.ExpressionModel("a * x + b")
    with pytest.raises(ModelError, match="is a ExpressionModel.*pass the function"):
        nlsq_dask.fit(expression, X, X, expression.make_params(a=1, b=1))
    lognormal = models.LognormalModel()
    with pytest.raises(ModelError, match=r"lognormal.*in its place, with the same"):
        nlsq_dask.fit(lognormal, X + 6, X, lognormal.make_params())


def test_parameters_without_lmfit(monkeypatch):
    result = nlsq_dask.fit(lambda x, a, b: a * x + b, X, X + 0.1 * X**2, fixed={"b": 1.0})
    found = pickle.loads(pickle.dumps(result)).to_lmfit_params()
    assert (found["a"].vary, found["b"].vary, found["b"].value) == (True, False, 1.0)
    monkeypatch.setitem(sys.modules, "lmfit", None)
    with pytest.raises(MissingLibraryError, match="pip install lmfit"):
        result.to_lmfit_params()


def test_a_tie_may_have_a_constant():
    reduction = reduce_parameters(("a", "b", "c"), {"c": 2.0}, {"b": {"a": -1.0, "c": 0.5, 1: 3.0}})
    assert reduction.expand(np.array([0.25])).tolist() == [0.25, 3.75, 2.0]
    with pytest.raises(InputError, match="2"):
        reduce_parameters(("a", "b"), None, {"b": {"a": 1.0, 2: 3.0}})
