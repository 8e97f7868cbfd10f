"""Run a function on each of some workers, without a wait for workers that leave meanwhile.

A worker that dies stays in the scheduler's list for a moment. ``Client.run`` then tries to connect
to it until ``distributed.comm.timeouts.connect``, 30 seconds by default, is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

# Seconds between two looks whether a worker that has not answered is still there.
WORKER_LOOK_SECONDS = 0.2


def ask_workers(
    client: Client, function: Callable[..., Any], *args: Any, workers: Sequence[str]
) -> dict[str, Any]:
    """What a function returns on each worker, by address.

    Parameters
    ----------
    client : distributed.Client
    function : callable
        Called as ``function(*args)``.
    *args : object
    workers : sequence of str
        Addresses.

    Returns
    -------
    dict of str to object
        An error is a value as well. A worker that has left before it answers has no value.
    """
    told: dict[str, Any] = client.sync(_ask, client, function, args, workers)
    return told


async def _ask(
    client: Client, function: Callable[..., Any], args: Sequence[Any], workers: Sequence[str]
) -> dict[str, Any]:
    async def ask(address: str) -> Any:
        answers = await client.run(function, *args, workers=[address], on_error="return")
        return answers[address]

    asked = {asyncio.ensure_future(ask(address)): address for address in workers}
    waiting = set(asked)
    try:
        while waiting:
            _, waiting = await asyncio.wait(waiting, timeout=WORKER_LOOK_SECONDS)
            there = await client.nthreads() if waiting else {}
            waiting = {task for task in waiting if asked[task] in there}
        return {address: task.result() for task, address in asked.items() if task.done()}
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
