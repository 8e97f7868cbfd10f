"""Errors of units: both are named, and how to bring them together."""

from __future__ import annotations

from nlsq_dask._errors.kinds import InputError, InputTypeError


def _named(unit: str) -> str:
    return f"the unit {unit!r}" if unit else "no unit"


def sigma_unit(of_sigma: str, of_y: str) -> InputError:
    return InputError(
        f"sigma has the unit {of_sigma!r} and y has {_named(of_y)}, and they do not convert: pass "
        "sigma in the unit of y. If both are the same unit in other words, give them one word, or "
        "pass sigma without a unit."
    )


def unit_differs(name: str, got: str, *, wanted: str, of: str) -> InputError:
    return InputError(
        f"{name} has the unit {got!r}, which does not convert to that of {of}, {_named(wanted)}: "
        f"pass {name} in the unit of {of}, or numbers without a unit."
    )


def unit_without_p0(where: str, unit: str) -> InputError:
    return InputError(
        f"{where} has the unit {unit!r}, but the parameter has none: give p0 with units, as "
        "parameters take the units of p0, or pass numbers."
    )


def list_of_quantities(name: str) -> InputTypeError:
    return InputTypeError(
        f"{name} is a list of quantities, each with a unit of its own: make one array of it, with "
        f"astropy.units.Quantity({name}) or pint.Quantity.from_list({name})."
    )


def unit_not_expected(name: str) -> InputTypeError:
    return InputTypeError(
        f"{name} holds quantities of pint, where numbers are expected: pass {name}.magnitude, or "
        f"for an array of xarray {name}.pint.dequantify(), which writes the unit into the "
        "attributes."
    )
