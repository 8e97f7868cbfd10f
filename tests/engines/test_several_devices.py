"""Several devices give the bits of one, as a process with simulated devices of the CPU shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nlsq_dask

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("several_devices.py")
# Kernels compile quickly here as in the other tests: see conftest.py.
FLAGS = f"--xla_force_host_platform_device_count=2 {os.environ.get('XLA_FLAGS', '')}"
CASES = [
    "standard",
    "streaming",
    "kept rows",
    "chunked, robust, weights and a mask",
    "maps",
    "plan",
    "resumed",
    "errors",
]


def test_several_devices_give_the_bits_of_one():
    root = Path(nlsq_dask.__file__).parents[1]
    env = {**os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    command = [sys.executable, "-W", "error", str(PROGRAM)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == CASES
