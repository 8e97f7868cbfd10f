"""The way from a client to the board of fits of its cluster.

A client tells of its fits by events of the scheduler. To tell never makes a fit wait, and never
makes a fit fail.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from dask import config

from nlsq_dask.engines.dask.fit_board import PLUGIN_NAME
from nlsq_dask.engines.dask.signals import BOARD_TOPIC

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger("nlsq_dask")

# Option of Dask's configuration: whether fits are shown on the scheduler's dashboard.
PAGE_OPTION = "nlsq_dask.fit-page"

# Messages that may wait to be sent. More are dropped, unless they tell of a new point or the end.
MOST_WAITING = 8


@dataclass
class _Link:
    """The way from a client to the board of its cluster.

    Attributes
    ----------
    lock : asyncio.Lock
        Messages are sent one after the other.
    is_open : bool
        Whether the scheduler has the plugin.
    waiting : int
        Messages that are to be sent.
    fits : set of str
        Fits that have begun, and have not ended.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    is_open: bool = False
    waiting: int = 0
    fits: set[str] = field(default_factory=set)


_links: WeakKeyDictionary[Client, _Link] = WeakKeyDictionary()


def open_board(client: Client) -> bool:
    """Show the fits of a client on the dashboard of its cluster, unless Dask is told otherwise.

    Returns
    -------
    bool
        Whether fits are to be told. The scheduler may turn out to have no page.
    """
    if not config.get(PAGE_OPTION, True):
        return False
    if client not in _links:
        _links[client] = link = _Link()
        _soon(client, _register, client, link)
    return True


def names_of_fits(fit: str, n_models: int) -> list[str]:
    """Identifiers on the board of the fits of one engine, by the number of the model."""
    return [fit] if n_models == 1 else [f"{fit}-{i}" for i in range(n_models)]


def shown_fits(client: Client, fit: str, n_models: int) -> list[str]:
    """Identifiers of the fits of one engine, if the scheduler of the client has a board of them."""
    link, names = _links.get(client), names_of_fits(fit, n_models)
    return names if link is not None and link.is_open and link.fits.issuperset(names) else []


def tell(client: Client, message: Mapping[str, Any], *, at_last: bool = False) -> None:
    """Send a message to the board, and do not wait.

    Parameters
    ----------
    client : distributed.Client
        For which a board was opened.
    message : mapping
        See :meth:`FitBoard.take`.
    at_last : bool
        Whether the message must not be dropped where the scheduler is slow.
    """
    link = _links[client]
    if message["kind"] == "begin":
        link.fits.add(message["fit"])
    elif message["kind"] == "end":
        link.fits.discard(message["fit"])
    if at_last or link.waiting < MOST_WAITING:
        link.waiting += 1
        _soon(client, _send, client, link, dict(message))


@dataclass(frozen=True)
class Board:
    """The board of fits of a cluster, which was opened for a client."""

    client: Client

    @property
    def client_id(self) -> str:
        """Identifier of the client."""
        return str(self.client.id)

    def tell(self, message: Mapping[str, Any], *, at_last: bool = False) -> None:
        """Send a message to the board, and do not wait; see :func:`tell`."""
        tell(self.client, message, at_last=at_last)


def _soon(client: Client, function: Callable[..., Any], *args: Any) -> None:
    """Run a coroutine function in the event loop of a client, which is another thread."""
    loop = client.loop
    if loop is not None:  # else the client is closed
        loop.add_callback(function, *args)


async def _register(client: Client, link: _Link) -> None:
    """Register the plugin; a scheduler that cannot have it goes without."""
    from nlsq_dask.engines.dask.fit_plugin import FitPage  # loads Dask's plugins

    async with link.lock:
        registered = asyncio.ensure_future(client.register_plugin(FitPage(), name=PLUGIN_NAME))
        await asyncio.wait([registered])
        if registered.cancelled() or registered.exception() is not None:
            logger.debug("the scheduler shows no fits: %r", registered)
        else:
            link.is_open = True


async def _send(client: Client, link: _Link, message: dict[str, Any]) -> None:
    async with link.lock:
        link.waiting -= 1
        scheduler: Any = client.scheduler
        if link.is_open and scheduler is not None:
            with suppress(OSError):  # the scheduler is gone; a fit that needs it will tell
                await scheduler.log_event(topic=BOARD_TOPIC, msg=message)
