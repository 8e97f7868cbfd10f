"""The face of progress on the dashboard of a cluster, for fits of many series."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nlsq_dask import _errors
from nlsq_dask._errors import Status
from nlsq_dask.fitting.board_face import MESSAGE_SECONDS, OVER_BY_ERROR, begun_by, told_of
from nlsq_dask.fitting.each import EachJob
from nlsq_dask.fitting.faces import Event
from nlsq_dask.fitting.moment import Moment

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.board_link import Board
    from nlsq_dask.engines.dask.executor import Executor


class SeriesBoardFace:
    """Tells the board of a cluster of the fits of many series.

    Parameters
    ----------
    job : EachJob
    board : Board
        Of the cluster that the fits run on.
    fit : str
        Identifier of the fits.
    """

    delay = 0.0

    def __init__(self, job: EachJob, board: Board, fit: str) -> None:
        self._board, self._fit = board, fit
        self._sent: float | None = None
        self._is_over = False
        self._series_bytes = sum(int(a.nbytes) for a in job.arrays) / max(
            math.prod(job.axes.map_shape), 1
        )
        names = {"title": job.problem.spec.label, "names": list(job.problem.spec.names)}
        self._tell("begin", names | begun_by(board))

    def show(self, moment: Moment, now: float, event: Event) -> None:
        """Tell of a moment; see :class:`~nlsq_dask.fitting.faces.Face`."""
        if self._sent is None or event == "blocks" or now - self._sent >= MESSAGE_SECONDS:
            self._sent = now
            self._tell("moment", self._told(moment), at_last=event == "blocks")

    def end(self, moment: Moment) -> None:
        """Tell of the last moment."""
        self._tell("moment", self._told(moment))

    def leave(self) -> None:
        """Tell that the fits failed, unless they are done."""
        if not self._is_over:
            self._tell("end", {"outcome": OVER_BY_ERROR, "success": False})

    def result(self, counts: Mapping[Status, int]) -> None:
        """Tell how the fits ended, by the number of series of each status."""
        self._is_over = True
        good = all(status.success for status in counts)
        outcome = "converged" if good else "some did NOT converge"
        message = _errors.series_text(counts)
        self._tell("end", {"outcome": outcome, "message": message, "success": good, "wait": ""})

    def _told(self, moment: Moment) -> dict[str, Any]:
        series = moment.series
        if series is None:
            return told_of(moment)
        rate, left = series.per_second * self._series_bytes, series.left
        own = {"bytes_per_second": rate, "fit_left": [left, left], "series": asdict(series)}
        return told_of(moment) | own

    def _tell(self, kind: str, message: Mapping[str, Any], *, at_last: bool = True) -> None:
        self._board.tell({"fit": self._fit, "kind": kind, **message}, at_last=at_last)


def series_faces(job: EachJob, executor: Executor, fit: str) -> list[SeriesBoardFace]:
    """A face for fits on a cluster whose dashboard shows fits; else none."""
    board = executor.board()
    return [] if board is None else [SeriesBoardFace(job, board, fit)]
