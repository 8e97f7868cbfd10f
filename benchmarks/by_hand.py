"""The C loop of ``kernel.c``, built where a compiler is found."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.problems import EXPONENTIAL, GAUSSIANS, FloatArray, Problem

SOURCE = Path(__file__).with_name("kernel.c")

#: Fast mathematics lets the compiler add in vectors, and call the vector library.
FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-math-errno", "-shared", "-fPIC")
#: GCC's alone: its own choice is vectors of 256 bits on most processors.
WIDE = "-mprefer-vector-width=512"

NAMES = {EXPONENTIAL.label: "exponential", GAUSSIANS.label: "gaussians"}

#: Sums ``[J r]ᵀ [J r]`` (p + 1, p + 1) of parameters, x and y.
Loop = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]


def loop_by_hand(problem: Problem) -> Loop | None:
    """The C loop of a problem; None without a C compiler that can build it.

    It takes x and y of a multiple of 256 rows.
    """
    library = _built()
    if library is None:
        return None
    function = library[NAMES[problem.label]]
    pointer = np.ctypeslib.ndpointer(np.float64, flags="C_CONTIGUOUS")
    function.argtypes = [pointer, pointer, ctypes.c_long, pointer, pointer]
    function.restype = None
    q = len(problem.truth) + 1
    upper = np.triu_indices(q)
    flat = np.empty(upper[0].size)

    def sums(params: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
        function(x, y, x.size, params, flat)
        total = np.empty((q, q))
        total[upper] = total.T[upper] = flat
        return total

    return sums


def _built() -> ctypes.CDLL | None:
    compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "kernel.so")
        for flags in ((*FLAGS, WIDE), FLAGS):
            command = [compiler, *flags, str(SOURCE), "-o", str(target), "-lm"]
            if subprocess.run(command, check=False, capture_output=True).returncode == 0:
                return ctypes.CDLL(str(target))
    return None
