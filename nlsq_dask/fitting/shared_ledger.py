"""The ledger of several fits that share their passes.

A pass answers a question of each model. The answers of groups are kept as for a single fit, in a
ledger beside the directories of the models. The checkpoint of each model covers the model's part of
an answer. The ledger has the whole answer until all checkpoints have been written.

Fits that are resumed ask the same questions again, if all of them were killed in one pass. Where
some had written the checkpoint of the pass and others not, they are out of step. The pass is then
read again, to the same bits.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from nlsq_dask import _errors
from nlsq_dask.core.questions import RowQuestion, Several
from nlsq_dask.engines.collapsed import CollapsedEngine, engine_of_rows
from nlsq_dask.engines.in_memory import InMemoryEngine
from nlsq_dask.engines.ledger import PassLedger
from nlsq_dask.fitting.job import Job, versions
from nlsq_dask.fitting.ledger import Ledger
from nlsq_dask.fitting.ledger_content import key_of
from nlsq_dask.io.files import Folder
from nlsq_dask.io.folders import open_folder
from nlsq_dask.questions.question import AnyQuestion

if TYPE_CHECKING:
    from nlsq_dask.engines.dask.engine import DaskEngine


class SharedLedger(Ledger):
    """Answers of the passes of several fits since their last checkpoints.

    Parameters
    ----------
    directory : Folder
        Directory above those of the models.
    jobs : mapping of str to Job
        The fits, by the names of the models, in the order of the models' numbers.
    engine : Engine
        Answers the questions of all models.

    Attributes
    ----------
    replayed : Counter
        Passes that an earlier process made and whose answers were taken from the ledger, by number
        of the model.
    """

    def __init__(
        self,
        directory: Folder,
        jobs: Mapping[str, Job],
        engine: InMemoryEngine | DaskEngine | CollapsedEngine,
    ) -> None:
        problem = {
            f"{name}: {part}": value
            for name, job in jobs.items()
            for part, value in job.description().items()
        }
        super().__init__(directory, problem, versions(next(iter(jobs.values()))), engine)
        self.replayed: Counter[int] = Counter()
        self._pending: dict[str, set[int]] = {}  # models without a checkpoint of an answer, by key

    def ask(self, question: RowQuestion[Any]) -> Any:
        """Put a question of several models to the engine, unless the ledger has the answer."""
        covered = [key for key in self._entries if not self._pending.get(key)]
        for key in covered:  # also the groups of a sample
            del self._entries[key]
        models = _models_in(question)
        self._pending = {self._key_of(question): set(models)} | {
            key: left for key, left in self._pending.items() if left
        }
        before = self.n_replayed
        answer = super().ask(question)
        if self.n_replayed > before:
            self.replayed.update(models)
        else:
            self._left = {}  # of the pass that was interrupted, or of a fit out of step
        return answer

    def saved(self, model: int) -> None:
        """Take note of a checkpoint of a model, which covers its parts of the answers."""
        for models in self._pending.values():
            models.discard(model)

    def knows_of(self, model: int, question: RowQuestion[Any]) -> bool:
        """Whether an earlier process left answers to a question, by the number of its model."""
        key = key_of(replace(cast("Any", question), model=model))
        left = (kept.get("parts") for kept in self._left.values() if isinstance(kept, dict))
        return any(isinstance(parts, list) and key in parts for parts in left)

    def of_pass(self, question: AnyQuestion[Any], n_groups: int) -> PassLedger:
        """Begin a pass, or go on with it. The sums of single groups are not wanted in the end."""
        begun: Any = super().of_pass(question, n_groups)
        unwanted: PassLedger = replace(begun, wanted=False) if begun.wanted else begun
        return unwanted

    def _see(self, question: RowQuestion[Any], entry: Any) -> None:
        """There is no table of the blocks of several models."""


def shared_ledger(
    jobs: Mapping[str, Job],
    engines: Sequence[InMemoryEngine | DaskEngine | CollapsedEngine],
    checkpoint: str | os.PathLike[str] | None,
) -> SharedLedger | None:
    """The ledger of fits that write checkpoints; None if they do not read streamed rows together.

    Parameters
    ----------
    jobs : mapping of str to Job
        By the names of the models.
    engines : sequence of Engine
        Of each model.
    checkpoint : path-like or None
        Directory above those of the models.
    """
    engine, job = engines[0], next(iter(jobs.values()))
    alone = isinstance(engine_of_rows(engine), InMemoryEngine)
    if checkpoint is None or alone or any(other is not engine for other in engines):
        return None
    not_a_path = _errors.checkpoint_not_a_path
    folder = open_folder(checkpoint, "checkpoint", not_a_path, job.checkpoint_options)
    return SharedLedger(folder, jobs, engine)


def _models_in(question: Any) -> list[int]:
    """Numbers of the models that a question is about."""
    if isinstance(question, Several):
        return sorted({model for part in question.questions for model in _models_in(part)})
    return [question.model]
