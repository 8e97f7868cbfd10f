"""The board of fits: what a cluster's scheduler knows of the fits of all its clients.

A client tells of its fits by events of the scheduler (``board_link``), which keeps events for
plugins that come later. The board makes a record of each fit from these events; the page of the
dashboard and ``fits.json`` show the records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nlsq_dask.core.float_bins import FloatBins, total

# Name of the plugin among those of a scheduler.
PLUGIN_NAME = "nlsq_dask-fits"

# Fits that the board keeps; of more, those that ended first are dropped.
MOST_FITS = 50

# Rates that the board keeps of a fit. Of more, every other one is dropped.
MOST_RATES = 500


@dataclass
class Point:
    """A point that the search of a fit moved to or tried.

    Attributes
    ----------
    number : int
        Number of the pass.
    cost, distance : float
        Cost of the best point so far, and its distance to the optimum in standard errors.
    params, errors : list of float
        Parameters and their standard errors.
    """

    number: int
    cost: float
    distance: float
    params: list[float]
    errors: list[float]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Residuals of some rows in bars.

    Attributes
    ----------
    edges : list of float
        Ends of the bars, which have one width.
    counts : list of int
        Rows in each bar.
    n_shown, n_rows : int
        Number of known residuals, and of all rows. Residuals far from the others are in no bar.
    """

    edges: list[float]
    counts: list[int]
    n_shown: int
    n_rows: int


@dataclass
class BoardFit:
    """What the board knows of a fit.

    Attributes
    ----------
    fit : str
        Identifier.
    title, client : str
        Name of the model, and of the client that fits.
    names : list of str
        Names of the parameters.
    began : float
        Time at which it began, in seconds since 1970.
    phase, wait : str
        Of the last moment.
    outcome, message : str
        How and why the fit ended; empty while it runs.
    success : bool or None
        None while the fit runs.
    seconds : float
        Time that the fit has taken.
    moment : dict
        The rest of the last moment: number of the pass, blocks, rates, time left.
    points : list of Point
    rates : list of (float, float)
        Seconds, and bytes a second.
    grid : list of int
        Numbers of blocks along each dimension.
    groups : list of list of int
        Blocks of each group, by number in the grid.
    chi2_rows, rows : dict
        Sum of squares a row, and rows, by the number of the group, in the last pass.
    weighted : bool
        Whether residuals are divided by sigma.
    residuals : dict
        Residuals of some rows, by the number of the group, in the last pass.
    """

    fit: str
    title: str = ""
    client: str = ""
    names: list[str] = field(default_factory=list)
    began: float = 0.0
    phase: str = ""
    wait: str = ""
    outcome: str = ""
    message: str = ""
    success: bool | None = None
    seconds: float = 0.0
    moment: dict[str, Any] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    rates: list[tuple[float, float]] = field(default_factory=list)
    grid: list[int] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)
    chi2_rows: dict[int, float] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)
    weighted: bool = False
    residuals: dict[int, FloatBins] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether the fit has ended."""
        return bool(self.outcome)

    def histogram(self) -> Histogram:
        """The residuals in bars."""
        found = total(list(self.residuals.values()))
        edges, counts = found.bars()
        return Histogram(edges.tolist(), counts.tolist(), found.n, sum(self.rows.values()))

    def as_json(self) -> dict[str, Any]:
        """The record as values of JSON, with the residuals as a histogram."""
        told = asdict(replace(self, residuals={}))
        del told["residuals"]
        return told | {"histogram": asdict(self.histogram())}


class FitBoard:
    """The fits of a cluster, by their identifiers, in the order in which they began.

    Attributes
    ----------
    version : int
        Number of messages so far: a page draws again if it has changed.
    """

    def __init__(self) -> None:
        self.fits: dict[str, BoardFit] = {}
        self.version = 0

    def take(self, message: Mapping[str, Any]) -> None:
        """Take note of a message.

        Parameters
        ----------
        message : mapping
            ``fit`` is the identifier of the fit. ``kind`` is one of these:

            - "begin", "moment" and "end", from a client. ``new_points`` are added to the points.
              All else are fields of the record, or parts of the moment.
            - "groups", of neighbouring groups of a pass: the number of the ``first``, their
              ``chi2_rows`` and ``rows``.
            - "residuals", of one ``group`` of a pass: ``bins`` and ``counts`` of
              :class:`~nlsq_dask.core.float_bins.FloatBins`.
        """
        kind, known = message.get("kind"), dict(message)
        fit = self.fits.get(known.pop("fit", ""))
        if kind == "begin":
            fit = self.fits[message["fit"]] = BoardFit(message["fit"])
            self._forget_some()
        if fit is None:  # it began before the board, or is forgotten
            return
        self.version += 1
        del known["kind"]
        if kind == "groups":
            first = known["first"]
            fit.chi2_rows |= {first + i: float(v) for i, v in enumerate(known["chi2_rows"])}
            fit.rows |= {first + i: int(n) for i, n in enumerate(known["rows"])}
            return
        if kind == "residuals":
            fit.residuals[known["group"]] = FloatBins.from_bytes(known)
            return
        fit.points += [Point(**point) for point in known.pop("new_points", ())]
        for name in list(known):
            if name in BoardFit.__dataclass_fields__:
                setattr(fit, name, known.pop(name))
        fit.moment |= known
        if kind == "moment" and known.get("bytes_per_second"):
            fit.rates.append((fit.seconds, known["bytes_per_second"]))
            if len(fit.rates) > MOST_RATES:
                fit.rates = fit.rates[::2]

    def client_left(self, client: str) -> None:
        """End the fits of a client that is gone."""
        for fit in self.fits.values():
            if fit.client == client and not fit.is_over:
                fit.outcome, fit.success = "its client is gone", False
                self.version += 1

    def as_json(self) -> list[dict[str, Any]]:
        """All fits as values of JSON."""
        return [fit.as_json() for fit in self.fits.values()]

    def _forget_some(self) -> None:
        over = [name for name, fit in self.fits.items() if fit.is_over]
        for name in [*over, *self.fits][: max(len(self.fits) - MOST_FITS, 0)]:
            del self.fits[name]
