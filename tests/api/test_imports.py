"""Imports are quiet: nothing heavy is loaded, and nothing changes, before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nlsq_dask

PACKAGE = Path(nlsq_dask.__file__).parent

# What Dask documents; all else of it, and of distributed, may change in any release.
DASK_API = {"dask", "dask.array", "dask.base", "dask.delayed"}

HEAVY = ("dask", "distributed", "jax", "jaxlib", "zarr", "scipy", "cloudpickle")


def run_python(program):
    """Run a program with this process's path; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{program}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    "program",
    [
        "import nlsq_dask",
        "import nlsq_dask; nlsq_dask.InputError, nlsq_dask.__version__, nlsq_dask.Status.COST",
        "import nlsq_dask; dir(nlsq_dask)",
        "from nlsq_dask import ConvergenceWarning, ModelError",
    ],
)
def test_the_package_loads_nothing_heavy(program):
    loaded = run_python(f"{program}\nprint(*sys.modules, sep='\\n')").split()
    assert "nlsq_dask" in loaded
    assert not set(HEAVY) & set(loaded)


@pytest.mark.slow
def test_a_fit_in_memory_loads_no_dask():
    loaded = run_python(
        "import numpy as np\n"
        "from nlsq_dask import fit\n"
        "x = np.arange(10.0)\n"
        "assert fit(lambda x, a, b: a * x + b, x, 2 * x + 1).success\n"
        "print(*sys.modules, sep='\\n')"
    ).split()
    unneeded = {"dask", "distributed", "zarr", "scipy", "asyncio", "psutil", "jax.extend"}
    assert not unneeded & set(loaded)


@pytest.mark.slow
def test_importing_changes_no_setting():
    run_python(
        "import logging, os, threading, warnings\n"
        "def settings():\n"
        "    root = logging.getLogger()\n"
        "    package = logging.getLogger('nlsq_dask')\n"
        "    return (dict(os.environ), root.level, root.handlers[:], package.level,\n"
        "            package.handlers[:], warnings.filters[:], threading.active_count())\n"
        "before = settings()\n"
        "import nlsq_dask\n"
        "assert settings() == before\n"
        "import jax, jax.numpy, dask.array\n"
        "dask_settings, before = dict(dask.config.config), settings()\n"
        "import nlsq_dask.api.fit, nlsq_dask.engines.dask.engine\n"
        "assert settings() == before\n"
        "assert dask.config.config == dask_settings\n"
        "assert not jax.config.jax_enable_x64\n"
    )


def test_every_public_name_can_be_had():
    assert set(nlsq_dask.__all__) <= set(dir(nlsq_dask))
    for name in nlsq_dask.__all__:
        assert getattr(nlsq_dask, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        nlsq_dask.fitt


def imports_of(tree):
    """Modules that are imported when the code runs, and not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
        else:
            yield from imports_of(node)


@pytest.mark.slow
def test_only_the_dask_engine_knows_what_dask_is_made_of():
    found = {
        (path.relative_to(PACKAGE).as_posix(), module)
        for path in PACKAGE.rglob("*.py")
        if not path.is_relative_to(PACKAGE / "engines" / "dask")
        for module in imports_of(ast.parse(path.read_text()))
        if module.partition(".")[0] in {"dask", "distributed"} and module not in DASK_API
    }
    assert found == {
        ("io/announced.py", "dask.layers"),
        ("planning/chunk_advice.py", "dask.array.core"),
    }


def test_the_root_of_the_package_is_its_face_and_folders():
    names = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert names == {"__init__.py", "py.typed"}
