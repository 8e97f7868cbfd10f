"""Copies of frozen records with other values in some fields."""

from __future__ import annotations

from typing import Any, TypeVar

RecordT = TypeVar("RecordT")


def with_changes(record: RecordT, **changes: Any) -> RecordT:
    """A copy of a record, as :func:`dataclasses.replace` makes it, in a fifth of the time.

    For dataclasses without slots, without ``__post_init__`` and without cached properties: the copy
    takes the fields as they are. A search copies a state of 24 fields several times a step.

    Parameters
    ----------
    record : dataclass instance
    **changes
        New values, by the names of the fields.
    """
    copy = object.__new__(type(record))
    fields = copy.__dict__
    fields |= record.__dict__
    n_fields = len(fields)
    fields |= changes
    assert len(fields) == n_fields, f"no fields of {type(record).__name__}: {sorted(changes)}"
    return copy
