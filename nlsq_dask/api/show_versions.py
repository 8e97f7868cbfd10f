"""``show_versions``: what a report of a problem should say about the installation."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nlsq_dask._errors import in_units
from nlsq_dask.core.installed import library_versions, machine
from nlsq_dask.core.memory_budget import SAFETY_FACTOR
from nlsq_dask.core.resources import available_cores, available_memory, gpu_memory
from nlsq_dask.results.tables import aligned

Row = tuple[str, str]


def show_versions() -> None:
    """Print the versions of the libraries, the devices and the memory of this process.

    Paste what it prints into the report of a problem. It names no path and no host.

    Examples
    --------
    >>> import nlsq_dask
    >>> nlsq_dask.show_versions()  # doctest: +SKIP
    Versions
      nlsq_dask    0.1.0
      python       3.12.4
      ...
    """
    sys.stdout.write(installation() + "\n")


def installation() -> str:
    """What :func:`show_versions` prints."""
    parts = [("Versions", list(library_versions().items())), ("This process", process_rows())]
    return "\n\n".join(section(title, rows) for title, rows in parts)


def process_rows() -> list[Row]:
    """Machine, devices and memory of this process, by name."""
    import jax  # takes a second, and only devices need it

    devices = [f"{device.platform}:{device.id} ({device.device_kind})" for device in jax.devices()]
    free, gpu = available_memory(), gpu_memory()
    rows = [
        ("machine", machine()),
        ("cores", str(available_cores())),
        ("devices", ", ".join(devices)),
        ("free memory", in_units(free)),
    ]
    if gpu is not None:
        rows.append(("free memory, GPU", in_units(gpu)))
    share = f"{SAFETY_FACTOR:.0%} of the free memory"
    return [*rows, ("memory of a fit", f"{in_units(free * SAFETY_FACTOR)}, which is {share}")]


def section(title: str, rows: Sequence[Row]) -> str:
    """A title, and below it a table with two columns."""
    return "\n".join([title, *(f"  {line}" for line in aligned(rows))])
