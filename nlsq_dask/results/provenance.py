"""How a result was made: the call, the time of the fit, and the plan to compare with."""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.io.locations import shown_url
from nlsq_dask.results.fit_plan import FitPlan
from nlsq_dask.results.record import FitRecord, estimates_of
from nlsq_dask.user_model.signature import model_label

# Arguments that are written without their name.
_POSITIONAL = ("x", "y")

# Arguments that are data, which may be large.
_DATA = ("x", "y", "sigma", "mask", "data")

# Arguments that do not say what is fitted: where it runs, what is shown, credentials.
_LEFT_OUT = frozenset(
    {"model", "client", "callback", "progress", "verbose", "dry_run", "storage_options", "resume"}
)

# Most characters of the source of a model that a report shows.
MOST_SOURCE = 8000


@dataclass(frozen=True)
class Provenance:
    """How a result was made. Files and pickles do not contain it.

    Attributes
    ----------
    model : callable
        The model of the fit.
    arguments : tuple of str
        Arguments of the fit beside the model, as code, without those that have their default.
    seconds : float
        Time of the whole fit.
    plan : callable
        ``plan()`` predicts the cost of the fit without reading data.
    """

    model: Callable[..., Any]
    arguments: tuple[str, ...]
    seconds: float
    plan: Callable[[], FitPlan] = field(repr=False)

    def planned(self) -> FitPlan | None:
        """The plan of the fit; None if planning fails now, as after the cluster was closed."""
        try:
            return self.plan()
        except (_errors.FitError, OSError, RuntimeError, ValueError):
            return None

    def source(self) -> str:
        """Source of the model; empty if Python does not know the source."""
        model = self.model
        function = model if inspect.isroutine(model) else type(model)
        if (getattr(function, "__module__", None) or "").partition(".")[0] == "nlsq_dask":
            return ""  # a model of this package is known by its name
        try:
            text = textwrap.dedent(inspect.getsource(function))
        except (OSError, TypeError):  # of a prompt, or compiled
            return ""
        return text if len(text) <= MOST_SOURCE else text[:MOST_SOURCE] + "\n..."

    def call(self) -> str:
        """The call of the fit, as code."""
        lines = [f"    {model_label(self.model)},", *(f"    {line}," for line in self.arguments)]
        return "\n".join(["from nlsq_dask import fit", "", "result = fit(", *lines, ")"])


def written_arguments(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[str, ...]:
    """The arguments of a call that say what was fitted and how, as code.

    The code is written now, so that no array of the caller is kept.

    Parameters
    ----------
    given : mapping
        All arguments, by name.
    defaults : mapping
        Defaults of the arguments, by name. An argument that has its default is left out.

    Returns
    -------
    tuple of str
        Without credentials and clients; data by their locations or shapes.
    """
    lines = []
    for name, default in defaults.items():
        value = given[name]
        if value is default or name in _LEFT_OUT:
            continue
        if isinstance(value, str | float | int | None) and value == default:
            continue
        title = "" if name in _POSITIONAL else f"{name}="
        lines.append(title + (_data(name, value) if name in _DATA else _option(value)))
    return tuple(lines)


def _data(name: str, value: Any) -> str:
    """Data as code: their location, or their name in place of an array."""
    if isinstance(value, str | os.PathLike):
        return repr(shown_url(os.fspath(value)))
    return repr(value) if isinstance(value, float | int) else name


def _option(value: Any) -> str:
    """An option as code; a long option in short."""
    if callable(value):
        return model_label(value)
    if isinstance(value, np.ndarray | np.generic) and value.size <= _errors.MOST_LISTED:
        value = value.tolist()
    if isinstance(value, FitRecord):
        value = estimates_of(value)
    return _errors.shown(value)
