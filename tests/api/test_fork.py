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
def fit():
    nlsq_dask.fit(line, np.arange(9.0), np.arange(9.0))
def status_of_forked():
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        fit()
    except nlsq_dask.ForkError as error:
        assert "get_context('spawn')" in str(error)
        os._exit(7)
    os._exit(0)
before = status_of_forked()
fit()
print(before, status_of_forked())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_process_that_is_forked_before_a_fit_or_after():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout == "0 7\n"


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
