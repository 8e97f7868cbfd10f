"""The ledger of a fit: answers since the last checkpoint, on disk, so that a killed pass goes on.

A checkpoint is written after a pass. Until then the ledger keeps the answer of every group that has
ended. It also keeps the answers of the passes that try several starts, since no checkpoint covers
these passes. The ledger is a JSON file beside the checkpoints. Its numbers are in the shortest form
that reads back to the same bits. A search that is resumed asks the same questions again. It gets
the answers that the ledger has, and only the other groups are read.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from nlsq_dask import _errors
from nlsq_dask.core.questions import RowQuestion, Several
from nlsq_dask.core.reflective import Box
from nlsq_dask.engines.collapsed import CollapsedEngine, engine_of_rows
from nlsq_dask.engines.in_memory import InMemoryEngine
from nlsq_dask.engines.ledger import NO_PASS_LEDGER, PassLedger
from nlsq_dask.engines.partial import LostBlock, Partial
from nlsq_dask.fitting.block_sums import MOST_SUMS_BYTES, BlockSums, has_sums, too_large
from nlsq_dask.fitting.checkpoint import check_problem
from nlsq_dask.fitting.checkpoint_content import decode as decode_file
from nlsq_dask.fitting.checkpoint_content import encode as encode_file
from nlsq_dask.fitting.ledger_content import (
    FORMAT,
    decode,
    differs,
    encode,
    is_kept,
    key_of,
    left_out_to_json,
    parts_of,
    read_groups,
    read_left_out,
    read_pilot,
)
from nlsq_dask.fitting.ledger_means import bytes_of_means
from nlsq_dask.fitting.omitted import Blocks, blocks_omitted, leave_out
from nlsq_dask.fitting.pilot import Pilot
from nlsq_dask.io.chunks import spread_blocks
from nlsq_dask.io.codec import dumps, to_json
from nlsq_dask.io.files import Folder
from nlsq_dask.questions.collapse import MeansOf
from nlsq_dask.questions.question import AnyQuestion

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEngine

T = TypeVar("T")

logger = logging.getLogger("nlsq_dask")

NAME = "ledger.json"

# Least seconds between two writes, and how many times longer than a write itself: writing takes at
# most two percent of a fit.
SECONDS = 3.0
TIMES_LONGER = 50.0

# Largest text of the answers of one pass, in characters. More groups are not written: 4,096 groups
# have so much with 60 parameters.
MOST_TEXT = 300_000_000

# Errors after which a fit can go on: the store or the cluster was away, or the user interrupted it.
INTERRUPTING = (KeyboardInterrupt, _errors.ReadingError, _errors.ClusterError)

# Groups of an interrupted pass that are read again and compared: at most so many, and of few groups
# fewer, one in GROUPS_COMPARED.
MOST_COMPARED_GROUPS = 3
GROUPS_COMPARED = 8

# Largest relative difference between the answers of a group before and after, on the same data.
LARGEST_CHANGE = 1e-8


@dataclass
class _Entry:
    """What is known of the answer to a question.

    Attributes
    ----------
    question : RowQuestion or BlockQuestion
    n_groups : int
    answers : dict
        Answers of groups, by number.
    texts : dict
        Those of them that are encoded, as JSON texts; None for an answer that is not kept.
    lost : dict
        Blocks that were lost while groups answered, by number of the group.
    whole : str or None
        JSON text of the answer of all groups.
    omitted : frozenset of tuple of int
        Blocks that are left out after the answer of all groups.
    """

    question: Any
    n_groups: int
    answers: dict[int, Any] = field(default_factory=dict)
    texts: dict[int, str | None] = field(default_factory=dict)
    lost: dict[int, tuple[LostBlock, ...]] = field(default_factory=dict)
    whole: str | None = None
    omitted: Blocks = frozenset()

    def text(self) -> str:
        """The JSON text of the entry."""
        texts = {"n_groups": dumps(self.n_groups), "whole": self.whole or "null"}
        texts["groups"] = f"{{{', '.join(self._groups())}}}"
        others = left_out_to_json(self.lost, self.omitted)
        if isinstance(self.question, Several):
            others["parts"] = parts_of(self.question)
        return _object(texts | {name: dumps(value) for name, value in others.items()})

    def answered(self, answer: str | None, omitted: Blocks) -> None:
        """Take note of the answer of all groups, and of all blocks that are left out of it."""
        self.whole, self.omitted = answer, omitted
        self.answers, self.texts, self.lost = {}, {}, {}

    def _groups(self) -> list[str]:
        """Names and values of the groups, as many as may be kept."""
        if self.whole is not None:
            return []
        found, size = [], 0
        for number, answer in self.answers.items():
            if number not in self.texts:
                self.texts[number] = encode(self.question, answer)
            text = self.texts[number]
            if text is not None and (size := size + len(text)) <= MOST_TEXT:
                found.append(f'"{number}": {text}')
        return found


@dataclass
class _Pass:
    """The answers of the groups of one pass; see :class:`PassLedger`."""

    ledger: Ledger
    entry: _Entry
    known: Mapping[int, Any]
    expected: Mapping[int, Any]
    wanted: bool

    @property
    def due(self) -> bool:
        return self.ledger.due

    def note(self, answers: Mapping[int, Any]) -> None:
        """Keep answers of groups, and compare them with the answers of an earlier process.

        A group that has lost a block since then is not compared.

        Raises
        ------
        DataChangedError
            If a group has another answer than before.
        """
        entry = self.entry
        for number, found in answers.items():
            lost = found.lost if isinstance(found, Partial) else ()
            answer = found.answer if isinstance(found, Partial) else found
            if lost:
                entry.lost[number] = lost
            elif number in self.expected and differs(
                entry.question, self.expected[number], answer, LARGEST_CHANGE
            ):
                raise _errors.ledger_of_other_data(self.ledger.path, number, entry.n_groups)
            entry.answers[number] = answer
        self.ledger.write_if_due()


class Ledger:
    """Answers since the last checkpoint; see :class:`nlsq_dask.engines.ledger.Ledger`.

    Parameters
    ----------
    directory : Folder or None
        Directory of the checkpoints; None writes nothing.
    problem : mapping
        Description of the fit in JSON values.
    versions : mapping
        Versions of the libraries.
    engine : Engine
        Answers what no earlier process has answered, and counts the passes.
    keeps : bool
        Whether to keep anything.
    refused : callable, optional
        Called with the error where the file cannot be written. By default that is a warning.

    Attributes
    ----------
    n_replayed : int
        Passes that an earlier process made and whose answers were taken from the ledger.
    blocks : BlockSums
        The sums of the groups of the last passes.
    keeps : bool
        Whether anything is kept.
    """

    def __init__(
        self,
        directory: Folder | None,
        problem: Mapping[str, Any],
        versions: Mapping[str, str],
        engine: InMemoryEngine | DaskEngine | CollapsedEngine,
        *,
        keeps: bool = True,
        refused: Callable[[OSError], None] | None = None,
    ) -> None:
        self.n_replayed = 0
        self._refused = refused
        self.blocks = BlockSums()
        self._engine = engine
        rows = engine_of_rows(engine)
        self._n_arrays = rows.n_arrays
        self.keeps = keeps
        self._omits = False
        self._grid: tuple[int, ...] = ()
        if keeps and not isinstance(rows, InMemoryEngine):
            rows.ledger = self
            self._omits = rows.streaming.omits
            self._grid = tuple(map(len, rows.stream.chunks))
        self._directory = directory
        self._problem = json.loads(dumps(problem)) if keeps else {}
        self._versions = dict(versions)
        self._left: dict[str, Any] = {}  # JSON values of an earlier process, by key
        self._pilot: Any = None
        self._pilot_left: Any = None
        self._entries: dict[str, _Entry] = {}
        self._may_exist = True
        self._trusted: set[str] = set()
        self._failed = directory is None
        self._next = time.monotonic() + SECONDS

    @property
    def path(self) -> str:
        """Path of the file in messages."""
        return NAME if self._directory is None else self._directory.shown(NAME)

    @property
    def due(self) -> bool:
        """Whether enough time has gone by since the last write."""
        return not self._failed and time.monotonic() >= self._next

    def load(self, *, after_checkpoint: bool) -> None:
        """Read what an earlier process left.

        Parameters
        ----------
        after_checkpoint : bool
            Whether the fit goes on from a checkpoint. The ledger may then be older, and of another
            fit.

        Raises
        ------
        InputError
            If the ledger is of another problem; the message names what differs.

        Warns
        -----
        CheckpointWarning
            If the file is damaged.
        """
        if self._directory is None:
            return
        try:
            if NAME not in self._directory.names():
                return
            form, values = decode_file(self._directory.read(NAME))
            if form != FORMAT:
                raise _errors.value_of_another_kind(form, FORMAT)
            left, pilot, problem = values["answers"], values["pilot"], values["problem"]
            if not (isinstance(left, dict) and isinstance(problem, dict)):
                raise _errors.value_of_another_kind(left, "an object of names and values")
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(_errors.ledger_damaged(self.path, error), stacklevel=2)
            return
        if after_checkpoint and problem != self._problem:
            return
        check_problem(self.path, problem, self._problem)
        self._left, self._pilot_left = left, pilot
        logger.info("going on with a pass that was interrupted, from %s", self.path)

    def knows(self, question: RowQuestion[Any]) -> bool:
        """Whether an earlier process left answers to a question."""
        return bool(self._left) and is_kept(question) and self._key_of(question) in self._left

    def _key_of(self, question: AnyQuestion[Any]) -> str:
        """Key of a question to the blocks that are not left out now."""
        return key_of(question, blocks_omitted(self._engine))

    def trust(self, question: RowQuestion[Any], answers: Mapping[int, Any], n_groups: int) -> None:
        """Take the answers of some groups, as JSON values, for what a pass would find.

        They are not compared in the pass.
        """
        key = self._key_of(question)
        left = self._left.get(key)
        known = left["groups"] if isinstance(left, dict) and "groups" in left else {}
        groups = {str(number): answer for number, answer in answers.items()} | dict(known)
        self._left[key] = {"n_groups": n_groups, "whole": None, "groups": groups}
        self._trusted.add(key)

    def pilot(self, find: Callable[[], Pilot | None], box: Box) -> Pilot | None:
        """The pilot that an earlier process found, or the pilot that is found now.

        Parameters
        ----------
        find : callable
        box : Box
            Bounds of the free parameters.
        """
        if self._pilot_left is not None:
            kept = self._read(lambda: self._pilot_of(self._pilot_left, box))
            self._pilot, self._pilot_left = self._pilot_left, None
            if kept is not None:
                (found, n_passes), omitted = kept
                leave_out(self._engine, omitted)
                self._replay(n_passes)
                return found
        before = self._engine.n_passes
        found = find()
        self._entries.clear()  # of the sample
        of_pilot = [] if found is None else [found]
        self._pilot = {
            "found": to_json(of_pilot),
            "n_passes": self._engine.n_passes - before,
            **left_out_to_json({}, blocks_omitted(self._engine)),
        }
        self.write_if_due()
        return found

    def _pilot_of(self, left: Any, box: Box) -> tuple[tuple[Pilot | None, int], Blocks]:
        """What an earlier process left of the pilot, and the blocks that it left out."""
        found = read_pilot(left, box)
        return found, self._omitted_of(left)

    def ask(self, question: RowQuestion[Any]) -> Any:
        """Put a question to the engine, unless an earlier process left the answer."""
        if not self.keeps or not is_kept(question):
            return self._engine.ask(question)
        if isinstance(self._engine, CollapsedEngine):  # its questions need no passes
            return self._engine.ask(question)
        key = self._key_of(question)
        answer = self._whole(question, key)
        if answer is None:
            answer = self._engine.ask(question)
        else:
            self._replay(1)
        entry = self._entries.setdefault(key, _Entry(question, 0))
        self._see(question, entry)
        entry.answered(encode(question, answer), blocks_omitted(self._engine))
        self.write_if_due()
        return answer

    def _see(self, question: RowQuestion[Any], entry: _Entry) -> None:
        """Take note of the sums of the groups of a pass."""
        self.blocks.see(question, entry.answers, entry.n_groups)

    def _replay(self, n_passes: int) -> None:
        """Count passes of an earlier process."""
        self._engine.n_passes += n_passes
        self.n_replayed += n_passes

    def of_pass(self, question: AnyQuestion[Any], n_groups: int) -> PassLedger:
        """Begin a pass, or go on with it; see :class:`nlsq_dask.engines.ledger.Ledger`."""
        if not is_kept(question) or self._too_large(question, n_groups):
            return NO_PASS_LEDGER
        key = self._key_of(question)
        left = self._left.pop(key, None)
        kept: dict[int, Any] = {}
        lost: dict[int, tuple[LostBlock, ...]] = {}
        if left is not None:
            kept, lost = self._read(lambda: self._groups_of(question, left, n_groups)) or ({}, {})
        whole = [number for number in sorted(kept) if number not in lost]
        count = max(1, min(MOST_COMPARED_GROUPS, len(whole) // GROUPS_COMPARED))
        if key in self._trusted:
            count = 0
        compared = {whole[i] for i in spread_blocks([len(whole)], count)} if whole else set()
        expected = {number: kept.pop(number) for number in compared}
        self._entries[key] = entry = _Entry(question, n_groups, dict(kept), lost=lost)
        known = {n: Partial(a, lost.get(n, ())) if self._omits else a for n, a in kept.items()}
        return _Pass(self, entry, known, expected, has_sums(question))

    def _too_large(self, question: AnyQuestion[Any], n_groups: int) -> bool:
        """Whether the answers of all groups take more memory than is kept."""
        if not isinstance(question, MeansOf):
            return too_large(question, n_groups)
        rows = engine_of_rows(self._engine)
        assert not isinstance(rows, InMemoryEngine), "its questions have no groups"
        return bytes_of_means(question, rows.stream.groups) > MOST_SUMS_BYTES

    def _groups_of(
        self, question: AnyQuestion[Any], left: Any, n_groups: int
    ) -> tuple[dict[int, Any], dict[int, tuple[LostBlock, ...]]]:
        """What an earlier process left of groups: their answers, and blocks that were lost.

        Groups that lost blocks are asked again where no block may be lost.
        """
        kept = read_groups(question, left, n_groups, self._n_arrays)
        lost = {n: blocks for n, blocks in read_left_out(left, self._grid)[0].items() if n in kept}
        if not self._omits:
            kept = {n: answer for n, answer in kept.items() if n not in lost}
        return dict(sorted(kept.items())), lost if self._omits else {}

    def _whole(self, question: RowQuestion[Any], key: str) -> Any:
        """The answer of all groups, if an earlier process left it; else None."""
        left = self._left.get(key)
        if not isinstance(left, dict) or left.get("whole") is None:
            return None
        del self._left[key]
        whole = left["whole"]
        found = self._read(
            lambda: (decode(question, whole, self._n_arrays), self._omitted_of(left))
        )
        if found is None:
            return None
        answer, omitted = found
        leave_out(self._engine, omitted)
        return answer

    def _omitted_of(self, left: Any) -> Blocks:
        """The blocks that an earlier process left out of an answer."""
        return read_left_out(left, self._grid)[1]

    def _read(self, read: Callable[[], T]) -> T | None:
        """Read values of an earlier process; None, with a warning, if they are damaged."""
        try:
            return read()
        except (KeyError, ValueError) as error:
            warnings.warn(_errors.ledger_damaged(self.path, error), stacklevel=2)
            return None

    def forget(self) -> None:
        """Forget all answers: a checkpoint covers them."""
        self._left, self._entries = {}, {}
        self._pilot = self._pilot_left = None
        if self._may_exist and self._directory is not None:
            self._may_exist = False
            with suppress(OSError):  # an older ledger does no harm
                self._directory.remove(NAME)

    def write_if_due(self) -> None:
        """Write the file, if enough time has gone by."""
        if self.due:
            self.write()

    def write(self) -> None:
        """Write the file.

        Warns
        -----
        CheckpointWarning
            If it cannot be written, once.
        """
        if self._directory is None:
            return
        began = time.monotonic()
        self._may_exist = True
        content = self._content()
        try:
            self._directory.write(NAME, encode_file(content))
        except OSError as error:
            self._failed = True
            # Kept as an attribute, a method of this object would keep the engine and its rows in
            # memory until Python collects circles.
            (self._refused or self._warn)(error)
        now = time.monotonic()
        self._next = now + max(SECONDS, TIMES_LONGER * (now - began))

    def _warn(self, error: OSError) -> None:
        """Warn that the file cannot be written."""
        _errors.warn_caller(_errors.checkpoint_not_written(self._directory, error))

    def _content(self) -> str:
        """The JSON text of the file."""
        texts = {key: dumps(value) for key, value in self._left.items()}
        texts |= {key: entry.text() for key, entry in self._entries.items()}
        named = {
            "format": dumps(FORMAT),
            "problem": dumps(self._problem),
            "versions": dumps(self._versions),
            "pilot": dumps(self._pilot or self._pilot_left),
            "answers": _object(texts),
        }
        return _object(named)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None
    ) -> None:
        """Keep what an interrupted fit has found; forget it after success."""
        if kind is None:
            self.forget()
        elif issubclass(kind, INTERRUPTING) and self._entries and not self._failed:
            self.write()


def _object(texts: Mapping[str, str]) -> str:
    """The JSON text of an object, from the texts of its values."""
    return f"{{{', '.join(f'{dumps(name)}: {text}' for name, text in texts.items())}}}"
