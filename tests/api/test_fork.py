"""A process that is forked after a fit says that it cannot fit; it used to hang."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest

from nlsq_dask import ForkError
from nlsq_dask.core import process

PROGRAM = """
import os, sys, warnings
import numpy as np
import nlsq_dask

warnings.simplefilter("ignore")  # of Python and JAX, that a fork is a bad idea
line = lambda x, a: a * x
if sys.argv[1] == "after":
    nlsq_dask.fit(line, np.arange(9.0), np.arange(9.0))
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    nlsq_dask.fit(line, np.arange(9.0), np.arange(9.0))
except nlsq_dask.ForkError as error:
    assert "get_context('spawn')" in str(error)
    os._exit(7)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.parametrize(("when", "status"), [("after", 7), ("before", 0)])
def test_a_process_that_is_forked(when, status):
    done = subprocess.run([sys.executable, "-c", PROGRAM, when], check=False, timeout=300)
    assert done.returncode == status


@pytest.mark.parametrize("fitted", [set(), {os.getpid()}])
def test_a_process_of_its_own_fits(fitted, monkeypatch):
    monkeypatch.setattr(process, "_fitted_in", fitted)
    with warnings.catch_warnings():
        process.check_not_forked()
    assert os.getpid() in fitted


def test_a_forked_process_is_refused(monkeypatch):
    monkeypatch.setattr(process, "_fitted_in", {os.getpid() + 1})
    with pytest.raises(ForkError, match="forked from one that had fitted"):
        process.check_not_forked()
