"""Checkpoints: the solver's state after every pass, on disk, so that a killed fit goes on.

A checkpoint is a JSON file of the problem's description, the solver's whole state, and a checksum.
Numbers are written in the shortest form that reads back to the same bits (Python's ``repr``), so
that a resumed fit ends bit for bit where the uninterrupted one would have. A file appears under
its name only when it is complete: it is written under another, flushed to the disk, and renamed.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from nlsq_dask import _errors
from nlsq_dask.core.resources import XLA_VECTOR_BITS
from nlsq_dask.core.solver_state import SolverState
from nlsq_dask.fitting.checkpoint_content import (
    FORMAT,
    FORMAT_0_1,
    Content,
    decode,
    encode,
    read_content,
)
from nlsq_dask.fitting.job import VECTOR_BITS
from nlsq_dask.io.codec import dumps, to_json
from nlsq_dask.io.files import Folder
from nlsq_dask.io.folders import open_folder

# Checkpoints kept of a fit: the newest, and two before it in case the disk spoils it.
KEPT = 3

# A fit numbers its files from 1, or after the last number that is there. Whatever 8-digit number a
# file has, files that come after it have names too.
_NAME = re.compile(r"checkpoint-([0-9]{8,18})\.json")


@dataclass(frozen=True)
class Checkpoint:
    """What is needed to go on with a fit.

    Attributes
    ----------
    state : SolverState
        The solver's state.
    n_passes : int
        Readings of all rows so far.
    starts : list of dict
        What multi-start found, as JSON values; empty without it.
    pilot : dict or None
        Outcome of the pilot fit, as JSON values.
    digests : dict or None
        Of a finished fit: checksums of a few blocks of the data, by their rows.
    of_0_1 : bool
        Whether version 0.1 wrote the checkpoint, so that the state must be judged again.
    omitted : frozenset of tuple of int
        Blocks that the fit has left out, by their index in the chunk grid.
    groups : dict or None
        Of a finished fit of streamed data: the sums of each group, as JSON values.
    problem : dict
        Description of the fit, of a checkpoint that was read.
    """

    state: SolverState
    n_passes: int
    starts: list[dict[str, Any]]
    pilot: dict[str, Any] | None
    digests: dict[str, str] | None = None
    of_0_1: bool = False
    omitted: frozenset[tuple[int, ...]] = frozenset()
    groups: dict[str, Any] | None = None
    problem: dict[str, Any] = field(default_factory=dict)


class CheckpointStore:
    """Checkpoints of one fit in one directory.

    Parameters
    ----------
    directory : path-like
        Made if it does not exist; or the URL of a place in an object store.
    problem : mapping
        Description of the fit in JSON values; a checkpoint of another one is refused.
    versions : mapping
        Versions of the libraries, recorded with each checkpoint.
    problem_0_1 : mapping, optional
        Description of the fit as version 0.1 writes it.
    options : mapping, optional
        Options of the object store.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        problem: Mapping[str, Any],
        versions: Mapping[str, str],
        problem_0_1: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        not_a_path = _errors.checkpoint_not_a_path
        self.directory = open_folder(directory, "checkpoint", not_a_path, options)
        self.problem: dict[str, Any] = json.loads(dumps(problem))
        self._problem_0_1 = json.loads(dumps(problem_0_1 or problem))
        self._versions = dict(versions)
        self._written: list[str] = []
        self._failed = False

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; where the disk refuses, warn once and let the fit go on.

        Warns
        -----
        CheckpointWarning
            If the file cannot be written.
        """
        try:
            self._written.append(self._write_new(self._encode(checkpoint)))
            while len(self._written) > KEPT:
                self.directory.remove(self._written.pop(0))
        except OSError as error:
            self.refused(error)

    def refused(self, error: OSError) -> None:
        """Warn, the first time, that a file cannot be written beside the checkpoints, or as one."""
        if not self._failed:
            self._failed = True
            _errors.warn_caller(_errors.checkpoint_not_written(self.directory, error))

    def load(self, *, may_differ: Collection[str] = ()) -> Checkpoint | None:
        """Read the newest checkpoint that is whole.

        Parameters
        ----------
        may_differ : collection of str
            Parts of the problem's description that may be others.

        Returns
        -------
        Checkpoint or None
            None if there is none to go on from.

        Raises
        ------
        InputError
            If the checkpoint is of another problem; the message names what differs.

        Warns
        -----
        CheckpointWarning
            For every newer file that is damaged, or in a format that is not known; and if the
            directory cannot be read.
        """
        try:
            files = self._files()
        except OSError as error:
            warnings.warn(_errors.checkpoints_not_read(self.directory, error), stacklevel=2)
            return None
        for _, name in reversed(files):
            path = self.directory.shown(name)
            try:
                form, values = decode(self.directory.read(name))
                known = form in (FORMAT, FORMAT_0_1)
                content = read_content(values, of_0_1=form == FORMAT_0_1) if known else None
            except (OSError, ValueError, KeyError) as error:
                warnings.warn(_errors.checkpoint_damaged(path, error), stacklevel=2)
                continue
            if content is None:
                warning = _errors.checkpoint_of_another_release(path, form)
                warnings.warn(warning, stacklevel=2)
                continue
            of_0_1 = form == FORMAT_0_1
            now = self._problem_0_1 if of_0_1 else self.problem
            check_problem(path, content.problem, now, may_differ)
            return _checkpoint(content, values, of_0_1)
        return None

    def _files(self) -> list[tuple[int, str]]:
        """Numbers and names of the checkpoints, by number."""
        return _numbered(self.directory)

    def _next_name(self) -> str:
        files = self._files()
        number, last = files[-1] if files else (0, "")
        name = f"checkpoint-{number + 1:08d}.json"
        if _NAME.fullmatch(name) is None:
            raise _errors.numbers_used_up(last)
        return name

    def _write_new(self, raw: bytes) -> str:
        """Write a file under the next number, which another fit may take at the same moment."""
        while not self.directory.write_new(name := self._next_name(), raw):
            pass
        return name

    def _encode(self, checkpoint: Checkpoint) -> bytes:
        content = dumps(
            {
                "format": FORMAT,
                "problem": self.problem,
                "versions": self._versions,
                "n_passes": checkpoint.n_passes,
                "starts": checkpoint.starts,
                "pilot": checkpoint.pilot,
                "digests": checkpoint.digests,
                **({"omitted": sorted(checkpoint.omitted)} if checkpoint.omitted else {}),
                "groups": checkpoint.groups,
                "state": to_json(checkpoint.state),
            }
        )
        return encode(content)


def recorded_vector_bits(directory: str | os.PathLike[str]) -> int | None:
    """Bits of the vectors with which the newest whole checkpoint was computed.

    None if there is no whole checkpoint. That a file is damaged is said when the checkpoint is
    loaded.
    """
    folder = open_folder(directory, "checkpoint", _errors.checkpoint_not_a_path)
    with suppress(OSError):
        for _, name in reversed(_numbered(folder)):
            with suppress(OSError, ValueError, KeyError):
                form, values = decode(folder.read(name))
                content = read_content(values, of_0_1=form == FORMAT_0_1)
                return int(content.versions.get(VECTOR_BITS, XLA_VECTOR_BITS))
    return None


def _numbered(folder: Folder) -> list[tuple[int, str]]:
    """Numbers and names of the checkpoints in a folder, by number."""
    found = ((_NAME.fullmatch(name), name) for name in folder.names())
    return sorted((int(match[1]), name) for match, name in found if match)


def _checkpoint(content: Content, values: Mapping[str, Any], of_0_1: bool) -> Checkpoint:
    return Checkpoint(
        content.state,
        content.n_passes,
        values["starts"],
        values["pilot"],
        content.digests,
        of_0_1,
        frozenset(content.omitted),
        content.groups,
        content.problem,
    )


def check_problem(
    path: str,
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    may_differ: Collection[str] = (),
) -> None:
    """Refuse a checkpoint of another fit.

    Raises
    ------
    InputError
        If the descriptions differ in more than `may_differ`.
    """
    names = sorted({*saved, *now} - {*may_differ})
    differing = [name for name in names if saved.get(name) != now.get(name)]
    if differing:
        first = differing[0]
        raise _errors.checkpoint_of_another_fit(path, differing, saved.get(first), now.get(first))
