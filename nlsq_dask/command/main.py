"""The command ``nlsq-dask``: fits from a shell or a batch script.

The exit status says how the command ended; see :class:`Exit`. Results are written to standard
output. Warnings, errors and progress are written to standard error.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from nlsq_dask import _errors
from nlsq_dask.command.actions import Exit
from nlsq_dask.command.parser import PROGRAM, parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the name of the command; those of the process by default.

    Returns
    -------
    int
        The exit status: 0 for a fit that converged; see :class:`Exit` for the others.
    """
    arguments = parser().parse_args(argv)
    with warnings_for_people():
        try:
            return int(arguments.action(arguments))
        except (_errors.ReadingError, _errors.ClusterError) as error:
            return _ended(error, Exit.NOT_READ)
        except _errors.FitError as error:
            return _ended(error, Exit.USAGE)
        except OSError as error:
            return _ended(error, Exit.NOT_READ)
        except KeyboardInterrupt:
            return _ended("interrupted", Exit.INTERRUPTED)


def _ended(reason: object, status: Exit) -> int:
    sys.stderr.write(f"{PROGRAM}: error: {reason}\n")
    return int(status)


@contextmanager
def warnings_for_people() -> Iterator[None]:
    """Write warnings of a fit without the line of code that caused them."""
    written = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, _errors.FitWarning):
            sys.stderr.write(f"{PROGRAM}: warning: {message}\n")
        else:
            written(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("always", _errors.FitWarning)
        warnings.showwarning = show
        yield
