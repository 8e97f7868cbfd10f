"""What the command ``nlsq-dask`` does: info, plan, fit, show."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

from nlsq_dask import _errors
from nlsq_dask.api.fit import fit
from nlsq_dask.api.plan import plan
from nlsq_dask.api.show_versions import installation, section
from nlsq_dask.command import values
from nlsq_dask.command.arrays import coordinates_of, located, sigma_of
from nlsq_dask.command.named_models import named_model
from nlsq_dask.core.goals import TOLERANCE_TIERS
from nlsq_dask.core.memory_budget import SAFETY_FACTOR
from nlsq_dask.core.resources import available_memory
from nlsq_dask.io.locations import local_path
from nlsq_dask.results.result import FitResult


class Exit(IntEnum):
    """Exit status of the command.

    ``CONVERGED``: the fit is a success, or the command did what it was asked. ``NOT_CONVERGED``:
    the fit found no optimum. ``USAGE``: an argument, a file or the data cannot be used as they are.
    ``NOT_READ``: data could not be read, an output could not be written, or the cluster failed.
    ``INTERRUPTED``: from the keyboard.
    """

    CONVERGED = 0
    NOT_CONVERGED = 1
    USAGE = 2
    NOT_READ = 3
    INTERRUPTED = 130


def info(_: argparse.Namespace) -> Exit:
    """Print versions, devices, memory, and the thresholds of the strategies."""
    room = _errors.in_units(available_memory() * SAFETY_FACTOR)
    strategies = [
        ("standard", f"data in memory that need at most {room} with their derivatives"),
        ("chunked", f"data in memory of at most {room}, in blocks"),
        ("streaming", f"Dask and Zarr arrays, and data of more than {room}"),
    ]
    names = [f"fewer than {below:.0e} rows" for below, _ in TOLERANCE_TIERS[:-1]]
    tiers = zip([*names, "more rows"], TOLERANCE_TIERS, strict=True)
    tolerances = [(name, f"{tolerance:.0e}") for name, (_, tolerance) in tiers]
    print_out(installation())
    print_out("\n" + section("Strategies", strategies))
    print_out("\n" + section('Tolerances of the workflow "auto"', tolerances))
    return Exit.CONVERGED


def plan_fit(arguments: argparse.Namespace) -> Exit:
    """Print what a fit will cost."""
    with _options(arguments) as (given, options):
        print_out(str(plan(*given, **options, time=arguments.time)))
    return Exit.CONVERGED


def run_fit(arguments: argparse.Namespace) -> Exit:
    """Fit, write the result, print its report, and write the report with pictures."""
    check_output("--out", arguments.out)
    check_output("--report", arguments.report)
    with _options(arguments) as (given, options):
        result = fit(
            *given,
            **options,
            checkpoint=arguments.checkpoint,
            resume=arguments.resume,
            progress=arguments.progress,
            verbose=2 if arguments.verbose else 0,
        )
        if arguments.out is not None:  # first: pictures read the data, which may fail
            result.save(arguments.out)
        return _reported(result, arguments.report)


def show(arguments: argparse.Namespace) -> Exit:
    """Print the report of a saved result."""
    check_output("--report", arguments.report)
    return _reported(FitResult.load(arguments.result), arguments.report)


def check_output(option: str, place: str | None) -> None:
    """Refuse a file that cannot be written, before anything is fitted.

    Raises
    ------
    InputError
        If the directory of the file does not exist or may not be written to.
    """
    if place is None:
        return
    path = local_path(place, option)
    if path is None:
        return
    folder = path.parent
    if not folder.is_dir():
        raise _errors.output_not_writable(option, place, f"there is no directory {folder}")
    if path.is_dir():
        raise _errors.output_not_writable(option, place, "it is a directory")
    if not os.access(folder, os.W_OK):
        raise _errors.output_not_writable(option, place, f"no files may be written to {folder}")


def print_out(text: str) -> None:
    """Write a text and a line feed to standard output."""
    sys.stdout.write(text + "\n")


def _reported(result: FitResult, report: str | None) -> Exit:
    """Print the report of a result, and write the report with pictures if one is asked for."""
    print_out(result.summary())
    if report is not None:
        sys.stdout.flush()
        result.to_html(report)
    return Exit.CONVERGED if result.success else Exit.NOT_CONVERGED


@contextmanager
def _options(
    arguments: argparse.Namespace,
) -> Iterator[tuple[tuple[Any, Any, Any], dict[str, Any]]]:
    """Model, x and y, and the keyword arguments of a plan and a fit; a client while they run."""
    given = (
        named_model(arguments.model),
        coordinates_of(arguments.x),
        located("--y", arguments.y),
    )
    options: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in (
            *("absolute_sigma", "nan_policy", "method", "loss", "f_scale", "max_nfev"),
            *("n_starts", "workflow", "goal", "memory_limit_gb"),
        )
    }
    options["sigma"] = sigma_of(arguments.sigma)
    if arguments.p0 is not None:
        options["p0"] = values.numbers("--p0", arguments.p0)
    if arguments.bounds is not None:
        options["bounds"] = values.bounds(arguments.bounds)
    if arguments.fixed is not None:
        options["fixed"] = values.numbers_by_name("--fixed", arguments.fixed)
    if arguments.storage_option:
        options["storage_options"] = values.options("--storage-option", arguments.storage_option)
    if arguments.scheduler is None:
        yield given, options
        return
    from nlsq_dask.engines.dask.connect import connected  # Dask, loaded for use

    with connected(arguments.scheduler) as client:
        yield given, options | {"client": client}
