"""Data and parameters with units, of pint, of astropy, and of a class that has what these have."""

from __future__ import annotations

from dataclasses import dataclass

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from nlsq_dask import FitResult, InputError, InputTypeError, curve_fit, fit, fit_models, plan

X = np.linspace(0, 4, 30)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.01 * np.sin(37 * X)
SIGMA = np.linspace(0.01, 0.03, 30)
P0 = [2.0, 1.0, 0.4]


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


@dataclass(frozen=True)
class Unit:
    """A unit with the documented attributes of astropy's: a method ``to``, and its name."""

    name: str

    def __str__(self):
        return self.name

    def __pow__(self, power):
        return Unit(f"({self.name})**{power}")

    def to(self, other):
        sizes = {"m": 1.0, "cm": 0.01, "(m)**2": 1.0, "cm2": 1e-4, "s": 1.0, "min": 60.0, "": 1.0}
        kinds = {"m": 0, "cm": 0, "(m)**2": 1, "cm2": 1, "s": 2, "min": 2, "": 3, "1 / s": 4}
        if kinds[self.name] != kinds[str(other)]:
            raise ValueError("not convertible")
        return sizes[self.name] / sizes[str(other)]


@dataclass(frozen=True)
class Quantity:
    """A quantity with the documented attributes of astropy's."""

    value: object
    unit: Unit

    def to(self, unit):
        return Quantity(np.asarray(self.value) * self.unit.to(unit), Unit(str(unit)))


def of_pint(values, unit):
    return pytest.importorskip("pint").get_application_registry().Quantity(values, unit)


def of_astropy(values, unit):
    return pytest.importorskip("astropy.units").Quantity(values, unit)


def of_class(values, unit):
    return Quantity(values, Unit(unit))


@pytest.fixture(params=[of_class, of_pint, of_astropy], ids=["class", "pint", "astropy"])
def quantity(request):
    return request.param


@pytest.fixture(scope="module")
def expected():
    return fit(decay, X, Y, P0, sigma=SIGMA, absolute_sigma=True)


def assert_same(result, expected, rtol=1e-12):
    np.testing.assert_allclose(result.popt, expected.popt, rtol=rtol)
    np.testing.assert_allclose(result.pcov, expected.pcov, rtol=10 * rtol)


@pytest.mark.slow
def test_sigma_is_converted_to_the_unit_of_y(quantity, expected):
    y, sigma = quantity(Y, "m"), quantity(100 * SIGMA, "cm")
    assert_same(fit(decay, X, y, P0, sigma=sigma, absolute_sigma=True), expected)
    assert_same(fit(decay, X, y, P0, sigma=SIGMA, absolute_sigma=True), expected)
    labelled = xr.DataArray(Y, dims="t", attrs={"units": "m"})
    assert_same(fit(decay, X, labelled, P0, sigma=sigma, absolute_sigma=True), expected)
    _, pcov = curve_fit(decay, quantity(X, "s"), y, P0, sigma=sigma, absolute_sigma=True)
    np.testing.assert_allclose(pcov, expected.pcov, rtol=1e-6)


@pytest.mark.slow
def test_a_covariance_is_converted_to_the_square_of_the_unit(quantity, expected):
    squared = quantity(1e4 * np.diag(SIGMA**2), "cm2" if quantity is of_class else "cm^2")
    result = fit(decay, X, quantity(Y, "m"), P0, sigma=squared, absolute_sigma=True)
    assert_same(result, expected, rtol=1e-7)


def test_sigma_of_another_dimension_is_refused(quantity):
    with pytest.raises(InputError, match=r"sigma has the unit 's\w*' and y has the unit 'm"):
        fit(decay, X, quantity(Y, "m"), sigma=quantity(SIGMA, "s"))
    with pytest.raises(InputError, match=r"sigma has the unit 's\w*' and y has no unit"):
        plan(decay, X, Y, sigma=quantity(SIGMA, "s"))
    labelled = xr.DataArray(Y, dims="t", attrs={"units": "m"})
    with pytest.raises(InputError, match=r"sigma has the unit 's\w*' and y has the unit 'm"):
        fit_models([decay], X, labelled, sigma=quantity(SIGMA, "s"))


def test_units_of_attributes_are_equal_or_refused():
    y = xr.DataArray(Y, dims="t", attrs={"units": "W"})
    sigma = xr.DataArray(SIGMA, dims="t", attrs={"units": "mW"})
    with pytest.raises(InputError, match="'mW' and y has the unit 'W'"):
        fit(decay, X, y, sigma=sigma)
    assert fit(decay, X, y, P0, sigma=sigma.assign_attrs(units="W")).data_units == {"y": "W"}


def test_coordinates_of_a_prediction_are_in_the_unit_of_the_fit(quantity, expected, tmp_path):
    result = fit(decay, quantity(X, "s"), quantity(Y, "m"), P0, sigma=SIGMA, absolute_sigma=True)
    assert_same(result, expected)
    seconds, metres = ("second", "meter") if quantity is of_pint else ("s", "m")
    assert result.data_units == {"x": seconds, "y": metres}
    axes = result.plot().axes
    assert axes[1].get_xlabel() == f"x [{seconds}]"
    result.save(tmp_path / "decay.json")
    loaded = FitResult.load(tmp_path / "decay.json", model=decay)
    for each in (result, loaded):
        np.testing.assert_allclose(each.predict(quantity(X / 60, "min")), expected.predict(X))
        np.testing.assert_array_equal(each.predict(X), expected.predict(X))
        with pytest.raises(InputError, match="x has the unit 'm.* that of the fit"):
            each.predict(quantity(X, "m"))
    with pytest.raises(InputError, match="that of the fit, no unit"):
        expected.predict(quantity(X, "s"))


@pytest.mark.parametrize("form", ["list", "dict"])
def test_parameters_take_the_units_of_their_starting_values(quantity, form):
    metre, rate = ("meter", "1 / second") if quantity is of_pint else ("m", "1 / s")
    p0 = {"a": quantity(2.0, "m"), "b": quantity(1.0, "1 / s"), "c": 0.4}
    units = {"a": metre, "b": rate}
    given = p0 if form == "dict" else list(p0.values())
    bounds = {"a": (quantity(10.0, "cm"), quantity(9.0, "m")), "c": (0.0, 1.0)}
    result = fit(decay, X, Y, given, bounds=bounds)
    np.testing.assert_allclose(result.popt, fit(decay, X, Y, P0).popt, rtol=1e-5)
    assert result.param_units == units
    np.testing.assert_allclose(result.bounds[0], [0.1, 9.0])
    assert f"  a [{metre}] " in str(result)
    assert f"b [{rate}]" in result.summary()
    assert f"b [{rate}]" in result._repr_html_()
    assert result.to_dataset().param_units.values.tolist() == [metre, rate, ""]
    sides = ([quantity(10.0, "cm"), None, 0.0], [quantity(9.0, "m"), None, 1.0])
    assert_same(fit(decay, X, Y, given, bounds=sides), result)
    held = fit(decay, X, Y, p0, fixed={"a": quantity(250.0, "cm")})
    assert held.params["a"].value == pytest.approx(2.5)
    assert held.param_units == units


def test_bounds_with_units_need_starting_values_with_units(quantity):
    bounds = {"a": (quantity(0.0, "m"), quantity(9.0, "m"))}
    with pytest.raises(InputError, match=r"bounds\['a'\] has the unit 'm.*give p0 with units"):
        fit(decay, X, Y, P0, bounds=bounds)
    p0 = {"a": quantity(2.0, "s"), "b": 1.0, "c": 0.4}
    with pytest.raises(InputError, match=r"bounds\['a'\] has the unit 'm.*does not convert"):
        fit(decay, X, Y, p0, bounds=bounds)


def test_an_array_of_starting_values_has_one_unit():
    line = fit(lambda x, a, b: a + b * x, X, 2 + 3 * X, of_class(np.ones(2), "m"))
    assert line.param_units == {"a": "m", "b": "m"}


def test_a_list_of_quantities_is_refused(quantity):
    values = [quantity(value, "s") for value in X]
    with pytest.raises(InputTypeError, match="x is a list of quantities"):
        fit(decay, values, Y)


def test_quantities_of_dask_arrays_stay_lazy():
    y, sigma = da.from_array(Y, chunks=10), da.from_array(SIGMA, chunks=10)
    result = fit(decay, X, of_pint(y, "m"), P0, sigma=of_pint(100 * sigma, "cm"))
    assert result.strategy == "streaming"
    assert_same(result, fit(decay, X, y, P0, sigma=sigma))


def test_deviations_of_temperatures_have_no_offset(expected):
    for unit in ("kelvin", "delta_degC", "degC"):
        sigma = of_pint(SIGMA, unit)
        result = fit(decay, X, of_pint(Y, "degC"), P0, sigma=sigma, absolute_sigma=True)
        assert_same(result, expected)


def test_an_array_of_xarray_with_quantities_is_refused_with_the_remedy():
    y = xr.DataArray(of_pint(Y, "m"), dims="t")
    with pytest.raises(InputTypeError, match=r"y\.pint\.dequantify\(\)"):
        fit(decay, X, y)
    with pytest.raises(InputTypeError, match=r"pass mask\.magnitude"):
        fit(decay, X, Y, mask=of_pint(X > 3, "m"))


def test_masked_arrays_of_astropy_leave_rows_out():
    masked = pytest.importorskip("astropy.utils.masked").Masked
    units = pytest.importorskip("astropy.units")
    out = np.arange(30) % 7 == 3
    expected = fit(decay, X, np.ma.MaskedArray(Y, out), P0)
    for y in (masked(Y, mask=out), masked(Y * units.m, mask=out)):
        result = fit(decay, X, y, P0)
        assert (result.n_points, result.n_skipped) == (26, 4)
        assert_same(result, expected)
    popt, _ = curve_fit(decay, X, masked(Y, mask=out), P0)
    np.testing.assert_allclose(popt, expected.popt, rtol=1e-6)
    column = pytest.importorskip("astropy.table").MaskedColumn(Y, mask=out, unit="m")
    result = fit(decay, X, column, P0)
    assert_same(result, expected)
    assert result.data_units == {"y": "m"}
