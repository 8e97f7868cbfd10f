"""Damaged files, and calls with odd arguments: does each end as documented?

``files``: checkpoints, ledgers and results with flipped bytes, cut off, with noise between, and
with odd values under the right checksum. A fit goes on from a directory of a mutated checkpoint and
a whole one before it, or of a whole checkpoint and a mutated ledger; a result is loaded.

- files: mutated files of the kind;
- loaded: those that were taken as they are. Under a right checksum, another number is no damage;
- passed over: checkpoints that gave a warning which names the file, and the one before was taken,
  and ledgers that gave such a warning, after which the pass began anew;
- refused: those that an InputError named;
- undocumented: those with another end. Each is listed on standard error.

``calls``: calls of ``fit``, ``curve_fit`` and ``plan`` on a few rows, in which up to five arguments
are drawn from valid, odd and impossible values.

- ran: calls that returned a result;
- refused: those that ended in an error of this package;
- undocumented: those with another error, or a warning of another kind.

Bar: none undocumented. The figures follow from ``--seed``.
"""

from __future__ import annotations

import itertools
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Row, arguments, judge, report
from benchmarks.fuzz_calls import calls
from nlsq_dask import CheckpointWarning, FitResult, InputError, fit
from nlsq_dask._errors import DataChangedError, FitWarning
from tests.support.mutated_files import (
    content_of_checkpoint,
    content_of_result,
    mutated,
    seal_checkpoint,
    seal_result,
)

KINDS = ("files", "calls")

# Blocks of streamed data, as many as groups.
BLOCKS = 8

X = np.linspace(0, 4, 200)
Y = 2.5 * np.exp(-1.3 * X) + 0.5 + 0.05 * np.sin(31 * X)


def decay(x, a, b, c):
    return a * jnp.exp(-b * x) + c


def fitted(directory: Path, *, resume: bool = False) -> FitResult:
    """The fit whose files are mutated."""
    return fit(decay, X, Y, p0=[1, 1, 0], checkpoint=directory, resume=resume)


def streamed(directory: Path, *, fails: bool = False, omits: bool = False) -> FitResult:
    """A fit whose ledger is mutated.

    It may be interrupted in the second pass, and leave out a block that it cannot read there.
    """
    reads = itertools.count()

    def read(block):
        count = next(reads)
        if fails and count == 2 * BLOCKS - 1:
            raise KeyboardInterrupt
        if fails and omits and count == BLOCKS + 2:
            raise OSError("the store is away")
        return block

    y = da.from_array(Y, chunks=Y.size // BLOCKS).map_blocks(read, dtype=float, meta=np.empty(0))
    options = {"pilot": False, "cache": False, "retries": 0, "resume": not fails}
    options["on_error"] = "omit" if omits else "raise"
    with dask.config.set(scheduler="synchronous"):
        return fit(decay, X, y, p0=[1, 1, 0], checkpoint=directory, progress=False, **options)


def resumed(directory: Path, name: str, again: Callable[[Path], Any]) -> str:
    """How a fit goes on from a directory with the mutated file `name`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            again(directory)
        except DataChangedError:
            return "refused"
        except InputError as error:
            return "refused" if name in str(error) else f"undocumented: {error}"
        except Exception as error:  # noqa: BLE001  # whatever it is, it is counted
            return f"undocumented: {error!r}"
    other = [w.message for w in caught if not isinstance(w.message, FitWarning)]
    if other:
        return f"undocumented: {other[0]!r}"
    about = [w.message for w in caught if w.category is CheckpointWarning]
    if any(name not in str(message) for message in about):
        return f"undocumented: {about[0]}"
    return "passed over" if about else "loaded"


def loaded(path: Path) -> str:
    """How a mutated result is loaded."""
    try:
        FitResult.load(path)
    except InputError as error:
        return "refused" if str(path) in str(error) else f"undocumented: {error}"
    except Exception as error:  # noqa: BLE001  # whatever it is, it is counted
        return f"undocumented: {error!r}"
    return "loaded"


def checkpoints(count: int, rng: random.Random, folder: Path) -> Iterable[tuple[str, str]]:
    """Kinds of damage and ends of `count` mutated checkpoints."""
    fitted(folder / "whole")
    first, *others = sorted((folder / "whole").iterdir())
    for _ in range(count):
        directory = folder / "mutated"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        shutil.copy(first, directory)
        source = rng.choice(others)
        raw = source.read_bytes()
        kind, changed = mutated(raw, content_of_checkpoint(raw), seal_checkpoint, rng)
        (directory / source.name).write_bytes(changed)
        yield kind, resumed(directory, source.name, partial(fitted, resume=True))


def ledgers(count: int, rng: random.Random, folder: Path) -> Iterable[tuple[str, str]]:
    """Kinds of damage and ends of `count` mutated ledgers, with and without lost blocks."""
    for omits in (False, True):
        with suppress(KeyboardInterrupt), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            streamed(folder / str(omits), fails=True, omits=omits)
    for number in range(count):
        omits = bool(number % 2)
        whole, directory = folder / str(omits), folder / "mutated"
        raw = (whole / "ledger.json").read_bytes()
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(whole, directory)
        kind, changed = mutated(raw, content_of_checkpoint(raw), seal_checkpoint, rng)
        (directory / "ledger.json").write_bytes(changed)
        again = partial(streamed, omits=omits)
        yield kind, resumed(directory, "ledger.json", again)


def results(count: int, rng: random.Random, folder: Path) -> Iterable[tuple[str, str]]:
    """Kinds of damage and ends of `count` mutated results."""
    path = folder / "result.json"
    fitted(folder / "whole").save(path)
    raw = path.read_bytes()
    content = content_of_result(raw)
    for _ in range(count):
        kind, changed = mutated(raw, content, seal_result, rng)
        path.write_bytes(changed)
        yield kind, loaded(path)


OF_FILES = ("loaded", "passed over", "refused", "undocumented")


def figures(name: str, ends: Iterable[tuple[str, str]], ways: Sequence[str] = OF_FILES) -> Row:
    """One line, of one kind of file, or of calls."""
    counts: Counter[str] = Counter()
    for kind, end in ends:
        outcome = end.partition(":")[0]
        counts[outcome] += 1
        if outcome == "undocumented":
            print(f"{name}, {kind}: {end}", file=sys.stderr)
    drawn = "files" if ways is OF_FILES else "calls"
    row: Row = {"what": name, drawn: counts.total()} | {way: counts[way] for way in ways}
    return row | judge(counts["undocumented"], at_most=0)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = arguments(__doc__, count=10_000, seed=0)
    parser.add_argument("kind", choices=KINDS, help="what is drawn at random")
    options = parser.parse_args(argv)
    rng, each = random.Random(options.seed), options.count // 3
    if options.kind == "calls":
        row = figures("calls", calls(options.count, rng), ("ran", "refused", "undocumented"))
        return report("fuzz calls", [row], options.json)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            figures("checkpoints", checkpoints(each, rng, Path(folder) / "checkpoints")),
            figures("ledgers", ledgers(each, rng, Path(folder) / "ledgers")),
            figures("results", results(options.count - 2 * each, rng, Path(folder))),
        ]
    return report("fuzz files", rows, options.json)


if __name__ == "__main__":
    main()
