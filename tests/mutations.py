"""Break the package on purpose, one thing at a time, and see that the suite notices.

``python -m tests.mutations`` makes one change after the other in a copy of the repository. Each
must make a test fail; the table says which, and in the end these tests must pass without a change.
``--list`` names the changes. ``--check`` runs all quick tests against each change, not only the
files that are named with it.

A change is a text that stands once in the package, in whichever file, and a text in its place. A
test is found by the name of its file, in whichever folder.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "nlsq_dask"
COPIED = (PACKAGE, "tests", "benchmarks", "docs", "examples", "pyproject.toml", "README.md")
#: Tests of the files that are named with a change, and of all files.
NAMED = "not cluster and not thorough"
QUICK = f"not slow and {NAMED}"
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?)(?: - |$)", re.MULTILINE)


@dataclass(frozen=True)
class Mutation:
    """One thing that goes wrong.

    Attributes
    ----------
    name : str
        What is wrong.
    old, new : str
        A text that stands once in the package, and what it becomes.
    tests : tuple of str
        Names of test files of which one notices.
    """

    name: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = [
    Mutation(
        "the gradient has the other sign",
        "products[:-1, -1].copy(),",
        "-products[:-1, -1],",
        ("test_sums.py",),
    ),
    Mutation(
        "rows behind the last are not masked",
        "return jnp.where(tile.valid, values, 0.0)",
        "return values",
        ("test_sums.py",),
    ),
    Mutation(
        "the last tile is lost",
        "return loop[0] * tile < rows.n",
        "return (loop[0] + 1) * tile <= rows.n",
        ("test_sums.py",),
    ),
    Mutation(
        "the last stage is lost",
        "if stage is not None:\n        yield keep(",
        "if stage is not None and stage.full:\n        yield keep(",
        ("test_in_memory.py",),
    ),
    Mutation(
        "the first block of a group is read twice",
        "first = i + 1\n",
        "first = i\n",
        ("test_chunks.py", "test_dask.py"),
    ),
    Mutation(
        "of kept rows only the first stage is summed",
        "return add_rows(question, kernels, rows)",
        "return add_rows(question, kernels, rows[:1])",
        ("test_cache.py",),
    ),
    Mutation(
        "a search does not hear that rows were lost",
        "lost = known is not None and now != known",
        "lost = False",
        ("test_omitted.py",),
    ),
    Mutation(
        "rows of omitted blocks are not counted",
        "return replace(made, n_left_out=group.n_left_out + group.n_rows - made.n_rows)",
        "return made",
        ("test_omitted.py",),
    ),
    Mutation(
        "kept rows outlive their block",
        "if self._rows is not None and self._blocks != indices:",
        "if False:",
        ("test_omitted.py",),
    ),
    Mutation(
        "blocks behind a shared value do not read its missing chunks",
        "affected = set(before)",
        "affected = set()",
        ("test_missing_chunks.py",),
    ),
    Mutation(
        "weights count by their roots",
        "values = values * tile.weights",
        "values = values * jnp.sqrt(tile.weights)",
        ("test_sums.py",),
    ),
    Mutation(
        "the weights of the scatter are not squared",
        "weight = _added(weight, _dots(pieces[1], pieces[1]))",
        "weight = _added(weight, _dots(pieces[1], np.ones_like(pieces[1])))",
        ("test_sums.py", "test_statistics.py"),
    ),
    Mutation(
        "scatters are combined without the weight of one side",
        "self.scatter + other.scatter + square * self.weight * share",
        "self.scatter + other.scatter + square * share",
        ("test_statistics.py",),
    ),
    Mutation(
        "correlated rows are whitened by the upper triangle",
        "jnp.asarray(columns), lower=True)",
        "jnp.asarray(columns), lower=False)",
        ("test_correlated.py",),
    ),
    Mutation(
        "no degree of freedom is taken off for the parameters",
        "2.0 * cost / max(n_points - size, 1)",
        "2.0 * cost / max(n_points, 1)",
        ("test_covariance.py",),
    ),
    Mutation(
        "absolute_sigma is swapped",
        "        if not absolute_sigma:\n            pcov *=",
        "        if absolute_sigma:\n            pcov *=",
        ("test_covariance.py",),
    ),
    Mutation(
        "the covariance is left in the coordinates of the basis",
        "_linearization(\n        root.factor @ basis.inverse,",
        "_linearization(\n        root.factor,",
        ("test_factor.py",),
    ),
    Mutation(
        "the robust covariance is left in the coordinates of the basis",
        "bread = basis.forward @ (inverse / lengths[:, None])",
        "bread = inverse / lengths[:, None]",
        ("test_losses.py",),
    ),
    Mutation(
        "upper bounds do not stop a step",
        "np.where(direction > 0.0, self.upper - params, self.lower - params)\n        strides",
        "np.where(direction > 0.0, np.inf, self.lower - params)\n        strides",
        ("test_reflective.py", "test_trf_bounds.py"),
    ),
    Mutation(
        "a bound of a tied parameter is ignored",
        "high[columns[0]] = min(high[columns[0]], ends[1])",
        "high[columns[0]] = min(high[columns[0]], np.inf)",
        ("test_constraints.py", "test_constraints_fit.py"),
    ),
    Mutation(
        "a tie to a fixed parameter loses its value",
        "offset[place[name]] += factor * offset[place[other]]",
        "offset[place[name]] += 0.0 * offset[place[other]]",
        ("test_constraints.py", "test_constraints_fit.py"),
    ),
    Mutation(
        "the second derivative of a robust loss has the other sign",
        "first * residuals, first + 2.0 * (z * second)",
        "first * residuals, first - 2.0 * (z * second)",
        ("test_loss.py", "test_losses.py"),
    ),
    Mutation(
        "the curvature of a named loss has the other sign",
        "inverse * (1.0 - 2.0 * z * inverse)",
        "inverse * (1.0 + 2.0 * z * inverse)",
        ("test_loss.py", "test_losses.py"),
    ),
    Mutation(
        "NaN is looked for in y alone",
        "(np.isnan(a) for a in arrays if",
        "(np.isnan(a) for a in arrays[:1] if",
        ("test_missing.py",),
    ),
    Mutation(
        "rows that are left out are not counted",
        "part = part + question.zero(n_left_out)",
        "part = part + question.zero()",
        ("test_missing.py",),
    ),
    Mutation(
        "a sample takes the rows that are left out",
        "np.flatnonzero(~block.left_out())[rows]",
        "np.flatnonzero(block.left_out())[rows]",
        ("test_missing.py", "test_pilot.py"),
    ),
    Mutation(
        "a resumed fit counts its passes from zero",
        "engine.n_passes = saved.n_passes",
        "engine.n_passes = 0",
        ("test_checkpoint.py",),
    ),
    Mutation(
        "series without an answer are searched once",
        "for changes in OTHER_SEARCHES:",
        "for changes in ():",
        ("test_fit_each.py",),
    ),
    Mutation(
        "maps of other data are gone on with",
        "if not _agree(found, again, most_apart):",
        "if found is again:",
        ("test_each_store.py",),
    ),
    Mutation(
        "a fit goes on from the oldest checkpoint",
        "for _, name in reversed(files):",
        "for _, name in files:",
        ("test_checkpoint.py",),
    ),
    Mutation(
        "a fit is over without having arrived",
        "if met is not None and left <= options.arrival_tol * deviation:",
        "if met is not None:",
        ("test_methods.py", "test_success.py"),
    ),
    Mutation(
        "one evaluation too many is allowed",
        "if status is None and state.nfev >= options.evaluations(state.params.size):",
        "if status is None and state.nfev > options.evaluations(state.params.size):",
        ("test_trf.py", "test_fit.py"),
    ),
    Mutation(
        "of several starts the worst is taken",
        "    best = min(starts, key=lambda s: (s.cost is None,",
        "    best = max(starts, key=lambda s: (s.cost is None,",
        ("test_multi_start.py",),
    ),
    Mutation(
        "the scatter between two sets of means is lost",
        "scatter = self.scatter + other.scatter + distance**2 * self.weight * share",
        "scatter = self.scatter + other.scatter",
        ("test_collapsed.py",),
    ),
    Mutation(
        "the scatter of collapsed rows is no part of their cost",
        "chi2 = sums.chi2 + known.scatter",
        "chi2 = sums.chi2",
        ("test_collapsed.py",),
    ),
    Mutation(
        "rows that are left out count in means",
        "            np.copyto(values, 0.0, where=self.left_out)",
        "            pass",
        ("test_collapsed.py",),
    ),
    Mutation(
        "a bad value of a series is no bad input",
        "status[self.counted.bad] = Status.BAD_INPUT",
        "status[self.counted.bad] = Status.TOO_FEW_ROWS",
        ("test_series_reading.py",),
    ),
    Mutation(
        "a ledger forgets the groups that an earlier process knew",
        " | dict(known)\n",
        "\n",
        ("test_append.py",),
    ),
]


def place_of(mutation: Mutation, package: Path) -> Path:
    """The file in which the text of a mutation stands.

    Raises
    ------
    LookupError
        If the text does not stand in the package exactly once.
    """
    counts = {p: p.read_text(encoding="utf-8").count(mutation.old) for p in package.rglob("*.py")}
    total = sum(counts.values())
    if total != 1:
        raise LookupError(
            f"{mutation.name!r}: its text stands in the package {total} times, not once; "
            f"write it as the code is now: {mutation.old!r}"
        )
    return next(path for path, count in counts.items() if count)


def files_of(mutation: Mutation, tests: Path) -> list[str]:
    """Paths of the test files of a mutation; all those of one name.

    Raises
    ------
    LookupError
        If there is no test file of a name.
    """
    paths = []
    for name in mutation.tests:
        found = sorted(str(path) for path in tests.rglob(name))
        if not found:
            raise LookupError(f"{mutation.name!r}: there is no test file {name}")
        paths += found
    return paths


@contextmanager
def copied(root: Path) -> Iterator[Path]:
    """A copy of the repository, to be broken."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        for name in COPIED:
            if (root / name).is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "_build", "generated")
                shutil.copytree(root / name, Path(folder, name), ignore=ignore)
            else:
                shutil.copy(root / name, folder)
        yield Path(folder)


@contextmanager
def broken(path: Path, mutation: Mutation) -> Iterator[None]:
    """A file of the copy with the mutation in it."""
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(whole, encoding="utf-8")


def run_tests(
    folder: Path, paths: Sequence[str], marks: str = NAMED
) -> subprocess.CompletedProcess[str]:
    """Run tests of some files in the copy, up to the first that fails."""
    # Kernels that a mutation does not change were compiled for the suite itself.
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",  # two changes within a second would look the same
        "CI": "1",  # the same examples of Hypothesis for all
    }
    options = ["-x", "-q", "-m", marks, "-p", "no:cacheprovider", "--tb=no"]
    options.append("--hypothesis-profile=first failure")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *paths],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def noticed_by(folder: Path, mutation: Mutation, check: bool) -> str | None:
    """The first test that fails with a mutation; None where none does."""
    tests = folder / "tests"
    with broken(place_of(mutation, folder / PACKAGE), mutation):
        if check:
            done = run_tests(folder, [str(tests)], QUICK)
        else:
            done = run_tests(folder, files_of(mutation, tests))
    failed = FAILED.search(done.stdout)
    if done.returncode == 1 and failed:
        return failed[1]
    if done.returncode:  # not collected, say: that is no test that fails
        raise RuntimeError(f"{mutation.name!r}: {done.stdout}\n{done.stderr}")
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutations; the number of those that no test notices."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all mutations by default")
    parser.add_argument("--list", action="store_true", help="name the mutations and end")
    parser.add_argument("--check", action="store_true", help="run all quick tests for each")
    given = parser.parse_args(arguments)
    chosen = [m for m in MUTATIONS if not given.names or any(n in m.name for n in given.names)]
    if given.list:
        print(*(m.name for m in chosen), sep="\n")
        return 0
    noticed = {}
    with copied(ROOT) as folder:
        for mutation in chosen:
            began = time.perf_counter()
            test = noticed[mutation.name] = noticed_by(folder, mutation, given.check)
            seconds = time.perf_counter() - began
            print(f"{mutation.name:62s} {test or 'NOT NOTICED'} ({seconds:.0f} s)", flush=True)
        tests = {test for test in noticed.values() if test}
        whole = run_tests(folder, sorted(tests)) if tests else None
        if whole is not None and whole.returncode:
            raise RuntimeError(f"a test fails without any mutation: {whole.stdout}{whole.stderr}")
    print(f"{sum(map(bool, noticed.values()))} of {len(chosen)} mutations are noticed")
    return sum(test is None for test in noticed.values())


if __name__ == "__main__":
    sys.exit(main())
