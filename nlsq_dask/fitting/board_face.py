"""The face of progress on the dashboard of a cluster: tells the scheduler's board of fits."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlsq_dask.core.covariance import covariance
from nlsq_dask.core.normal_equations import FloatArray
from nlsq_dask.core.solver_state import SolverState
from nlsq_dask.engines.collapsed import CollapsedEngine, engine_of_rows
from nlsq_dask.engines.in_memory import InMemoryEngine
from nlsq_dask.fitting.faces import Event
from nlsq_dask.fitting.job import Job
from nlsq_dask.fitting.moment import Moment
from nlsq_dask.fitting.pace import Seconds

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.board_link import Board
    from nlsq_dask.engines.dask.engine import DaskEngine
    from nlsq_dask.results.result import FitResult

# Seconds between two messages. The points of quick passes are told together.
MESSAGE_SECONDS = 0.5

# Most blocks for which the board is told the group of each block.
MOST_BLOCKS = 10_000

# Outcome of a fit that raised an exception.
OVER_BY_ERROR = "failed or interrupted"


class BoardFace:
    """Tells the board of a cluster how one fit goes.

    Parameters
    ----------
    job : Job
    board : Board
        Of the cluster that the fit runs on.
    fit : str
        Identifier of the fit.
    place : dict
        Grid of the blocks, and blocks of each group.
    model : str
        Name of the model among several.
    """

    delay = 0.0

    def __init__(
        self, job: Job, board: Board, fit: str, place: dict[str, Any], model: str = ""
    ) -> None:
        self._job = job
        self._board = board
        self._fit = fit
        self._model = model
        self._sent: float | None = None
        self._points: list[dict[str, Any]] = []
        names = list(job.spec.names)
        begun = {"title": job.spec.label, "names": names, **place}
        begun["weighted"] = job.data.sigma is not None
        self._tell("begin", begun | begun_by(board))

    def show(self, moment: Moment, now: float, event: Event) -> None:
        """Tell of a moment; see :class:`~nlsq_dask.fitting.faces.Face`."""
        if event == "point" and moment.model == self._model and moment.state is not None:
            self._points.append(self._point(moment))
        if self._sent is None:
            self._sent = now
        if now - self._sent >= MESSAGE_SECONDS:
            self._sent = now
            self._tell("moment", told_of(moment), at_last=bool(self._points))

    def end(self, moment: Moment) -> None:
        """Tell of the last moment; the numbers of the result follow."""
        self._tell("end", told_of(moment) | {"outcome": moment.outcome})

    def leave(self) -> None:
        """Tell that the fit failed."""
        self._tell("end", {"outcome": OVER_BY_ERROR, "success": False})

    def result(self, result: FitResult) -> None:
        """Tell how the fit ended, with the numbers of its result."""
        point = {
            "number": int(result.n_passes),
            "cost": float(result.cost),
            "distance": float(result.distance_to_optimum_sigma),
            "params": result.popt.tolist(),
            "errors": np.sqrt(np.diag(result.pcov)).tolist(),
        }
        outcome = "converged" if result.success else "did NOT converge"
        told = {"outcome": outcome, "message": result.message, "success": bool(result.success)}
        self._points.append(point)
        self._tell("end", told | {"wait": ""})

    def _point(self, moment: Moment) -> dict[str, Any]:
        state = moment.state
        assert state is not None, "a new point"
        return {
            "number": moment.number,
            "cost": float(state.cost),
            "distance": float(state.history[-1].distance),
            "params": self._job.reduction.expand(state.params).tolist(),
            "errors": standard_errors(self._job, state).tolist(),
        }

    def _tell(self, kind: str, message: dict[str, Any], *, at_last: bool = True) -> None:
        message = {"fit": self._fit, "kind": kind, "new_points": self._points, **message}
        self._points = []
        self._board.tell(message, at_last=at_last)


def board_faces(
    jobs: Sequence[Job],
    engines: Sequence[InMemoryEngine | DaskEngine | CollapsedEngine],
    names: Sequence[str] = ("",),
) -> list[BoardFace]:
    """A face for each model, if the fit is on a cluster with a dashboard that shows fits."""
    rows, board = engine_of_rows(engines[0]), jobs[0].executor.board()
    if board is None or isinstance(rows, InMemoryEngine):
        return []
    from nlsq_dask.engines.dask.board_link import names_of_fits  # an engine, loaded for use

    place, fits = _place(rows), names_of_fits(rows.fit, len(jobs))
    told = zip(jobs, fits, names, strict=True)
    return [BoardFace(job, board, fit, place, name) for job, fit, name in told]


def standard_errors(job: Job, state: SolverState) -> FloatArray:
    """Standard errors of all parameters at a point of a search, computed as for a linear loss."""
    pcov, _ = covariance(
        state.linearization.r_factor,
        state.cost,
        state.n_points,
        absolute_sigma=job.absolute_sigma,
    )
    errors: FloatArray = np.sqrt(np.diag(job.reduction.expand_covariance(pcov)))
    return errors


def _place(engine: DaskEngine) -> dict[str, Any]:
    """Where the blocks of each group are in the chunk grid; nothing of very many blocks."""
    stream = engine.stream
    if stream.n_blocks > MOST_BLOCKS:
        return {}
    grid = tuple(map(len, stream.chunks))
    groups = [
        [int(np.ravel_multi_index(step.index, grid)) for step in group.steps]
        for group in stream.groups
    ]
    return {"grid": list(grid), "groups": groups}


def begun_by(board: Board) -> dict[str, Any]:
    """When and where a fit begins."""
    host = f"{socket.gethostname()}:{os.getpid()}"
    return {"began": time.time(), "client": board.client_id, "host": host}


def told_of(moment: Moment) -> dict[str, Any]:
    """A moment as values of JSON."""
    return {
        "phase": moment.phase,
        "wait": moment.wait,
        "seconds": moment.seconds,
        "number": moment.number,
        "passes": list(moment.passes),
        "blocks": None if moment.blocks is None else list(moment.blocks),
        "rows_per_second": moment.rows_per_second,
        "bytes_per_second": moment.bytes_per_second,
        "pass_left": _ends(moment.pass_left),
        "fit_left": _ends(moment.fit_left),
    }


def _ends(span: Seconds | None) -> list[float | None] | None:
    return None if span is None else [span.low, span.high]
