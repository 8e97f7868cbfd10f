"""What a pass tells of its groups while it runs, so that another process can go on with the pass.

The answers of groups are added in the order of the groups, whenever and wherever they were made. So
a pass that begins with the answers of an earlier process ends in the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nlsq_dask.questions.question import AnyQuestion


class PassLedger(Protocol):
    """The answers of the groups of one pass.

    Where blocks that cannot be read are left out, an answer is a
    :class:`~nlsq_dask.engines.partial.Partial`.
    """

    @property
    def known(self) -> Mapping[int, Any]:
        """Answers of an earlier process, by the number of the group. These groups are not run."""
        ...

    @property
    def wanted(self) -> bool:
        """Whether the answer of every group is wanted in the end."""
        ...

    @property
    def due(self) -> bool:
        """Whether to note now the groups that have ended."""
        ...

    def note(self, answers: Mapping[int, Any]) -> None:
        """Keep the answers of groups that have ended."""
        ...


class Ledger(Protocol):
    """The answers of the groups of all passes of a fit."""

    def of_pass(self, question: AnyQuestion[Any], n_groups: int) -> PassLedger:
        """Begin a pass, or go on with it."""
        ...


class _NoPassLedger:
    """Keeps nothing."""

    known: Mapping[int, Any] = {}
    wanted = False
    due = False

    def note(self, answers: Mapping[int, Any]) -> None:
        pass


class _NoLedger:
    """Keeps nothing of any pass."""

    def of_pass(self, question: AnyQuestion[Any], n_groups: int) -> PassLedger:  # noqa: ARG002
        return NO_PASS_LEDGER


NO_PASS_LEDGER: PassLedger = _NoPassLedger()
NO_LEDGER: Ledger = _NoLedger()
