"""Errors of labelled data: files, labels, names of variables, and times."""

from __future__ import annotations

from nlsq_dask._errors.kinds import InputError


def file_not_sent(name: str) -> InputError:
    return InputError(
        f"the variable {name!r} is in a file that other processes cannot open by its path, so that "
        "a cluster cannot read it: store it as a file that all workers see, or fit it without a "
        "cluster."
    )
