"""The code of the README, the tutorial and the how-to runs as printed, and prints what is shown.

The Python blocks of a page, in order, are one script: what a reader gets who pastes them into a
file. A `text` block that follows a Python block shows what it prints.
"""

import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d[\d_,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
END_OF_BLOCK = "-- end of block --"
PAGES = [
    "README.md",
    "docs/tutorial.md",
    "docs/fitting.md",
    "docs/fit_each.md",
    "docs/xarray.md",
    "docs/models.md",
    "docs/results.md",
    "docs/pictures.md",
    "docs/labelled_results.md",
    "docs/comparing.md",
    "docs/lmfit.md",
    "docs/choose_a_workflow.md",
    "docs/planning.md",
    "docs/watch_a_fit.md",
    "docs/object_stores.md",
    "docs/what_happens_when.md",
]


def split_numbers(text):
    """Words without their numbers and spacing, and the numbers."""
    words = NUMBER.sub("#", text).split()
    numbers = [float(n.replace(",", "").replace("_", "")) for n in NUMBER.findall(text)]
    return words, numbers


def assert_same_text(shown, printed):
    """Equal words; numbers equal but for the last digits, which vary with library versions."""
    shown_words, shown_numbers = split_numbers(shown)
    printed_words, printed_numbers = split_numbers(printed)
    assert shown_words == printed_words
    assert shown_numbers == pytest.approx(printed_numbers, rel=0.02, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_page_runs_and_prints_what_it_shows(page, tmp_path):
    if page == "docs/lmfit.md":
        pytest.importorskip("lmfit")
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert blocks
    script = tmp_path / "page.py"
    script.write_text(
        "".join(f"{code}\nprint({END_OF_BLOCK!r})\n" for code, _ in blocks), encoding="utf-8"
    )

    run = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert "Warning" not in run.stderr
    printed = run.stdout.split(END_OF_BLOCK + "\n")
    for (code, shown), text in zip_longest(blocks, printed[: len(blocks)]):
        if shown or "print(" in code:
            assert_same_text(shown, text)


def test_a_wrong_word_or_number_is_noticed():
    assert_same_text("a = 1.500 +- 0.02", "a  =  1.501 +- 0.02")
    for other in ("b = 1.500 +- 0.02", "a = 1.700 +- 0.02", "a = 1.500"):
        with pytest.raises(AssertionError):
            assert_same_text("a = 1.500 +- 0.02", other)
