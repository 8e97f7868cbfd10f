"""A client of a cluster by the address of its scheduler."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nlsq_dask import _errors

if TYPE_CHECKING:
    from distributed import Client

#: The address of a cluster that is started on this machine.
LOCAL_ADDRESS = "local"

# Seconds to wait for a scheduler file: a batch script starts the scheduler in the background, which
# writes the file when it is ready. And seconds between two looks.
MOST_WAIT, LOOK = 60.0, 0.1


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of a scheduler, which is closed at the end.

    Parameters
    ----------
    address : str
        Address such as "tcp://10.0.0.1:8786", path of a scheduler file that ends in ".json", or
        "local", which starts workers on this machine and ends them again.

    Raises
    ------
    ClusterError
        If the scheduler does not answer.
    """
    from distributed import Client  # takes half a second

    if address == LOCAL_ADDRESS:
        with Client(set_as_default=False, dashboard_address=":0") as client:
            yield client
        return
    target = {"address": address}
    if address.endswith(".json"):
        _wait_for(Path(address))
        target = {"scheduler_file": address}
    try:
        client = Client(**target, set_as_default=False)
    except (OSError, ValueError) as error:  # a time limit is an OSError, a wrong address the other
        raise _errors.scheduler_not_reached(address, error) from None
    with client:
        yield client


def _wait_for(file: Path) -> None:
    """Wait for a scheduler file; ClusterError if none appears."""
    end = time.monotonic() + MOST_WAIT
    while not file.exists():
        if time.monotonic() >= end:
            raise _errors.scheduler_not_reached(str(file), "there is no such file")
        time.sleep(LOOK)
