"""The demo runs as a program, says what it found, draws its picture and leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
@pytest.mark.cluster
def test_demo_on_few_rows(tmp_path):
    picture = tmp_path / "out" / "demo.png"
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    run = subprocess.run(
        [sys.executable, str(DEMO), "--rows", "400_000", "--output", str(picture)],
        env={**os.environ, "TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    assert "killing" not in run.stderr  # Dask, of a worker that takes long to end
    assert "Traceback" not in run.stderr
    for name in ("amplitude", "lifetime", "frequency", "phase", "offset"):
        assert name in run.stdout
    assert picture.read_bytes().startswith(PNG_SIGNATURE)
    assert not [left for left in scratch.iterdir() if left.name.startswith("nlsq_dask_demo_")]
