"""The plugin of a scheduler that shows fits: a page of its dashboard, and ``fits.json``.

The first fit on a cluster registers the plugin. A scheduler may also have it from its start:
``dask scheduler --preload nlsq_dask.engines.dask.fit_plugin``; or from a client:
``client.register_plugin(FitPage())``.

Without Bokeh, or without a dashboard, a scheduler has ``fits.json`` alone.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.web import RequestHandler

from nlsq_dask.engines.dask.fit_board import PLUGIN_NAME, FitBoard
from nlsq_dask.engines.dask.signals import BOARD_TOPIC

# Path of the page below the address of the dashboard.
PAGE = "fits"


class FitPage(SchedulerPlugin):
    """Shows all fits of a cluster on the page ``fits`` of the scheduler's dashboard."""

    name = PLUGIN_NAME
    idempotent = True

    def __init__(self) -> None:
        self.board = FitBoard()

    async def start(self, scheduler: Any) -> None:
        """Read the events so far, and add the page."""
        for _, message in scheduler.get_events(BOARD_TOPIC):
            self.board.take(message)
        prefix = _prefix(scheduler)
        route = (f"{prefix}/{PAGE}.json", FitsAsJson, {"board": self.board})
        scheduler.http_application.add_handlers(r".*", [route])
        if _applications(scheduler):
            from nlsq_dask.engines.dask.fit_page import add_page  # needs Bokeh

            add_page(scheduler, self.board, prefix)

    def log_event(self, topic: str, msg: Any) -> None:
        """Take note of an event that tells of a fit."""
        if topic == BOARD_TOPIC:
            self.board.take(msg)

    def remove_client(self, scheduler: Any, client: str) -> None:  # noqa: ARG002 (of Dask)
        """Take note that a client is gone."""
        self.board.client_left(client)


class FitsAsJson(RequestHandler):
    """Answers with the records of all fits."""

    def initialize(self, board: FitBoard) -> None:
        """Take note of the board."""
        self._board = board

    def get(self) -> None:
        """Write the records; numbers that are not finite are NaN and Infinity, as in Python."""
        self.set_header("Content-Type", "application/json")
        self.write(json.dumps(self._board.as_json()))


def _applications(scheduler: Any) -> list[Any]:
    """The Bokeh applications of a scheduler."""
    bokeh = sys.modules.get("bokeh.server.tornado")
    if bokeh is None:  # Dask imports it if it can show a dashboard
        return []
    apps = scheduler.http_application.applications
    return [app for app in apps if isinstance(app, bokeh.BokehTornado)]


def _prefix(scheduler: Any) -> str:
    """What stands before the paths of the dashboard: mostly nothing."""
    prefixes = [app.prefix.rstrip("/") for app in _applications(scheduler)]
    return prefixes[0] if prefixes else ""


async def dask_setup(scheduler: Any) -> None:
    """Add the page to a scheduler that is started with ``--preload``."""
    await scheduler.register_scheduler_plugin(FitPage(), name=PLUGIN_NAME, idempotent=True)
