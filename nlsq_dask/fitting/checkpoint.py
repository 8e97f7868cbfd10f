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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from nlsq_dask import _errors
from nlsq_dask.core.solver_state import SolverState
from nlsq_dask.io.codec import checksum, dumps, from_json, to_json
from nlsq_dask.io.files import write_atomically
from nlsq_dask.results.earlier import CRITERIA

FORMAT = "nlsq_dask checkpoint 5"
# The format of version 0.1, whose searches ended by another rule.
FORMAT_0_1 = "nlsq_dask checkpoint 4"

# Checkpoints kept of a fit: the newest, and two before it in case the disk spoils it.
KEPT = 3

_NAME = re.compile(r"checkpoint-(\d{8})\.json")


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
    """

    state: SolverState
    n_passes: int
    starts: list[dict[str, Any]]
    pilot: dict[str, Any] | None
    digests: dict[str, str] | None = None
    of_0_1: bool = False


class CheckpointStore:
    """Checkpoints of one fit in one directory.

    Parameters
    ----------
    directory : path-like
        Made if it does not exist.
    problem : mapping
        Description of the fit in JSON values; a checkpoint of another one is refused.
    versions : mapping
        Versions of the libraries, recorded with each checkpoint.
    problem_0_1 : mapping, optional
        Description of the fit as version 0.1 writes it.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        problem: Mapping[str, Any],
        versions: Mapping[str, str],
        problem_0_1: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self._problem = json.loads(dumps(problem))
        self._problem_0_1 = json.loads(dumps(problem_0_1 or problem))
        self._versions = dict(versions)
        self._written: list[Path] = []
        self._failed = False

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; where the disk refuses, warn once and let the fit go on.

        Warns
        -----
        CheckpointWarning
            If the file cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            numbers = [number for number, _ in self._files()]
            path = self.directory / f"checkpoint-{max(numbers, default=0) + 1:08d}.json"
            write_atomically(path, self._encode(checkpoint))
            self._written.append(path)
            while len(self._written) > KEPT:
                self._written.pop(0).unlink(missing_ok=True)
        except OSError as error:
            if not self._failed:
                self._failed = True
                warnings.warn(_errors.checkpoint_not_written(self.directory, error), stacklevel=2)

    def load(self) -> Checkpoint | None:
        """Read the newest checkpoint that is whole.

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
            For every newer file that is damaged, or in a format that is not known.
        """
        for _, path in reversed(self._files()):
            try:
                content = _decode(path.read_bytes())
                form = content["format"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                warnings.warn(_errors.checkpoint_damaged(path, error), stacklevel=2)
                continue
            if form not in (FORMAT, FORMAT_0_1):
                warning = _errors.checkpoint_of_another_release(path, form)
                warnings.warn(warning, stacklevel=2)
                continue
            of_0_1 = form == FORMAT_0_1
            problem = self._problem_0_1 if of_0_1 else self._problem
            _check_problem(path, content["problem"], problem)
            return Checkpoint(
                _state_of_0_1(content) if of_0_1 else from_json(SolverState, content["state"]),
                content["n_passes"],
                content["starts"],
                content["pilot"],
                content.get("digests"),
                of_0_1,
            )
        return None

    def _files(self) -> list[tuple[int, Path]]:
        if not self.directory.is_dir():
            return []
        found = ((_NAME.fullmatch(path.name), path) for path in self.directory.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match)

    def _encode(self, checkpoint: Checkpoint) -> bytes:
        content = dumps(
            {
                "format": FORMAT,
                "problem": self._problem,
                "versions": self._versions,
                "n_passes": checkpoint.n_passes,
                "starts": checkpoint.starts,
                "pilot": checkpoint.pilot,
                "digests": checkpoint.digests,
                "state": to_json(checkpoint.state),
            }
        )
        return dumps({"sha256": checksum(content), "content": content}).encode()


def _check_problem(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another fit."""
    differing = [name for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
    if differing:
        first = differing[0]
        raise _errors.checkpoint_of_another_fit(path, differing, saved.get(first), now.get(first))


def _state_of_0_1(content: Mapping[str, Any]) -> SolverState:
    """The state of a search of version 0.1, with what follows from its history and its problem."""
    state = from_json(SolverState, content["state"])
    refused = list(takewhile(lambda record: not record.accepted, reversed(state.history)))
    sizes = np.abs(np.array(content["problem"]["p0"], np.float64))
    met = state.status if state.status in CRITERIA else None
    return replace(state, sizes=sizes, n_rejected=len(refused), met=met)


def _decode(raw: bytes) -> dict[str, Any]:
    envelope = json.loads(raw)
    if envelope["sha256"] != checksum(str(envelope["content"])):
        raise ValueError(_errors.CHECKSUM_MISMATCH)
    content: dict[str, Any] = json.loads(envelope["content"])
    return content
