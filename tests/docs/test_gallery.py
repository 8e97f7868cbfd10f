"""Each script of the gallery runs as a program, recovers the truth, and writes its picture."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES, IMAGES = ROOT / "examples", ROOT / "docs" / "images"
GALLERY = sorted({path.stem for path in EXAMPLES.glob("*.py")} - {"common", "demo"})
#: Libraries that a script needs beside the package and xarray.
NEEDS = {"object_store": ("moto", "obstore"), "packed_netcdf": ("h5netcdf", "h5py")}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_PICTURE = 60_000  # bytes, in the repository
ESTIMATE = re.compile(r"^(\w+) .* ([+-]\d+\.\d)$", re.MULTILINE)


@pytest.mark.every(8)
@pytest.mark.slow
@pytest.mark.parametrize("name", GALLERY)
def test_script_recovers_the_truth_and_draws_its_picture(name, tmp_path):
    for library in ("xarray", *NEEDS.get(name, ())):
        pytest.importorskip(library)

    run = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    distances = [float(distance) for _, distance in ESTIMATE.findall(run.stdout)]
    assert len(distances) >= 3
    assert max(map(abs, distances)) <= 5
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]
    assert (tmp_path / f"{name}.png").read_bytes().startswith(PNG_SIGNATURE)


def test_the_page_shows_each_script_with_a_small_picture():
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"`examples/(\w+)\.py`", page)) == sorted([*GALLERY, "common"])
    assert sorted(re.findall(r"images/(\w+)\.png", page)) == GALLERY
    for name in GALLERY:
        assert (IMAGES / f"{name}.png").stat().st_size < LARGEST_PICTURE


def test_the_makefile_draws_each_picture():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    names = re.search(r"^GALLERY := (.+)$", makefile, re.MULTILINE).group(1).split()
    assert sorted(names) == GALLERY


@pytest.fixture(scope="module")
def common():
    """The module that the scripts share; importing it sets matplotlib up for scripts."""
    spec = importlib.util.spec_from_file_location("gallery_common", EXAMPLES / "common.py")
    module = importlib.util.module_from_spec(spec)
    with mpl.rc_context():
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("estimate", "success", "ends"),
    [(1.04, True, False), (1.06, True, True), (np.nan, True, True), (1.0, False, True)],
)
def test_a_wrong_answer_ends_a_script_with_an_error(common, estimate, success, ends):
    result = SimpleNamespace(
        names=("rate",),
        popt=np.array([estimate]),
        perr=np.array([0.01]),
        params={"rate": f"{estimate} ± 0.01"},
        success=success,
        message="stalled",
    )
    if not ends:
        common.check(result, {"rate": 1.0})
        return
    with pytest.raises(SystemExit) as ended:
        common.check(result, {"rate": 1.0})
    assert ended.value.code not in (0, None)
