"""Errors and warnings of checkpoints, of appended rows, and of data that have changed since."""

from __future__ import annotations

from collections.abc import Sequence

from nlsq_dask._errors.kinds import (
    CheckpointWarning,
    DataChangedError,
    InputError,
    InputTypeError,
    join_names,
    shortened,
    shown,
)
from nlsq_dask._errors.reading import is_refused


def resume_without_checkpoint() -> InputError:
    return InputError(
        "resume=True needs checkpoint=..., the directory of the fit to go on with: a result's "
        "`checkpoint`, or the log of the interrupted fit, names it."
    )


def checkpoint_not_a_path(value: object) -> InputTypeError:
    return InputTypeError(
        f"checkpoint = {value!r} is no path: pass the name of a directory, which is made if there "
        "is none."
    )


def checkpoint_not_written(directory: object, cause: OSError) -> CheckpointWarning:
    what = "permissions and the credentials" if is_refused(str(cause)) else "place and its space"
    return CheckpointWarning(
        f"no checkpoint could be written to {directory} ({cause}): the fit goes on without. "
        f"Check the {what}, or pass another checkpoint directory, to be able to resume it."
    )


def checkpoints_not_read(directory: object, cause: OSError) -> CheckpointWarning:
    return CheckpointWarning(
        f"the checkpoints in {directory} cannot be read ({cause}): the fit starts anew. Give "
        "permission to read the directory, or pass the right one."
    )


def checkpoint_damaged(path: object, cause: Exception) -> CheckpointWarning:
    return CheckpointWarning(
        f"checkpoint {path} is damaged ({shortened(str(cause))}): going back to the one "
        "before it, or to the start."
    )


def ledger_damaged(path: object, cause: Exception) -> CheckpointWarning:
    return CheckpointWarning(
        f"ledger {path} is damaged ({shortened(str(cause))}): the pass that was interrupted begins "
        "anew."
    )


def checkpoint_of_another_release(path: object, form: object) -> CheckpointWarning:
    """A checkpoint is in a format that is not known."""
    return CheckpointWarning(
        f"checkpoint {path} is in the format {shown(form)}, which this release of nlsq_dask does "
        "not read: going back to the one before it, or to the start. Resume with the release that "
        "wrote it."
    )


def checkpoint_of_another_fit(
    path: object, differing: Sequence[str], saved: object, now: object
) -> InputError:
    return InputError(
        f"checkpoint {path} is of another fit: {shortened(join_names(differing))} differ "
        f"({shortened(differing[0])} was {shown(saved)} and is {shown(now)} now). "
        "Resume with the same problem, or pass another checkpoint directory."
    )


def append_without_checkpoint() -> InputError:
    return InputError(
        "append=True needs checkpoint=..., the directory of the fit of the rows before."
    )


def append_in_memory(strategy: str, n_distinct: int) -> InputError:
    if n_distinct:
        return InputError(
            "append=True: the rows are collapsed to means, and a checkpoint does not have these: "
            "pass collapse=False, in the first fit as well."
        )
    return InputError(
        f"append=True is for streamed data, and strategy = {strategy!r}: pass arrays of Dask or "
        "Zarr, or strategy='streaming'. Rows in memory are soon summed again."
    )


def append_to_unfinished(directory: object, *, ended: bool) -> InputError:
    if ended:
        return InputError(
            f"append=True: the last checkpoint in {directory} has no sums of its chunks. Another "
            "release wrote it, or the sums take too much memory: fit all rows, with another "
            "checkpoint directory."
        )
    return InputError(
        f"append=True: the fit in {directory} has not ended: finish it first, on the rows that it "
        "had, with resume=True."
    )


def append_to_other_chunks(
    directory: object, old: Sequence[Sequence[int]], new: Sequence[Sequence[int]]
) -> InputError:
    return InputError(
        f"append=True: the chunks of the data are {shown(new)} and were {shown(old)} in the fit in "
        f"{directory}. Rows can be appended along the first dimension, in chunks of the same "
        "lengths: pass the arrays in such chunks, or fit all rows with another checkpoint "
        "directory."
    )


def append_damaged(directory: object, cause: Exception) -> InputError:
    return InputError(
        f"append=True: the sums in the last checkpoint in {directory} are damaged "
        f"({shortened(str(cause))}): fit all rows, with another checkpoint directory."
    )


_SAME_DATA = (
    "A fit needs the same data in every pass: wait until they are written, pass a copy, give "
    "random numbers upstream a seed for each block"
)


def _earlier(resumed: bool) -> str:
    return "the run that left the checkpoint" if resumed else "an earlier pass"


def data_changed_rows(
    first: tuple[int, int], now: tuple[int, int], *, resumed: bool
) -> DataChangedError:
    remedy = "; or begin anew, with another checkpoint directory" if resumed else ""
    return DataChangedError(
        f"the data have changed: {_earlier(resumed)} had {first[0]:,} rows and left out "
        f"{first[1]:,}, and this pass had {now[0]:,} and left out {now[1]:,}. {_SAME_DATA}{remedy}."
    )


def data_changed_values(name: str, first: float, now: float, *, resumed: bool) -> DataChangedError:
    what = {
        "weight": "the sum of the weights 1 / sigma²",
        "mean": "the mean of y",
        "sample": "the sum of every 512th value of y",
        "scatter": "the scatter of y, Σ (y - mean)² / sigma²,",
    }[name]
    remedy = "; or begin anew, with another checkpoint directory" if resumed else ""
    return DataChangedError(
        f"the data have changed: {what} was {first!r} in {_earlier(resumed)} and is {now!r} in "
        f"this pass. {_SAME_DATA}{remedy}."
    )


def data_changed_column(name: str, first: float, now: float) -> DataChangedError:
    """Values of a coordinate, or of sigma, are not those of an earlier pass."""
    what = f"|{name}|" if name != "sigma" else "1 / sigma"
    return DataChangedError(
        f"the data have changed: the sum of every 512th value of {what} was {first!r} in an "
        f"earlier pass and is {now!r} in this pass. {_SAME_DATA}."
    )


def data_changed_to(found: InputError) -> DataChangedError:
    return DataChangedError(
        f"the data have changed: {found} They were finite in an earlier pass. {_SAME_DATA}."
    )


def checkpoint_of_other_data(path: object, rows: Sequence[str], n: int) -> DataChangedError:
    return DataChangedError(
        f"checkpoint {path} is of a fit that ended on other data: the rows y{rows[0]} differ "
        f"({len(rows)} of {n} blocks that were compared). Pass resume=False or another checkpoint "
        "directory to fit these data."
    )


def ledger_of_other_data(path: object, number: int, n_groups: int) -> DataChangedError:
    return DataChangedError(
        f"the data have changed: group {number} of {n_groups} has other sums than in the pass that "
        f"was interrupted, of which {path} has the answers. {_SAME_DATA}; or begin anew, with "
        "another checkpoint directory."
    )
