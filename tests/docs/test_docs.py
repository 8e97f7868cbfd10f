"""The code of the README, the tutorial and the how-to runs as printed, and prints what is shown.

The Python blocks of a page, in order, are one script: what a reader gets who pastes them into a
file. A `text` block that follows a Python block shows what it prints.
"""

import re
import runpy
from itertools import zip_longest
from pathlib import Path

import dask
import matplotlib as mpl
import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d[\d_,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
END_OF_BLOCK = "-- end of block --"
#: Every page that has a Python block. A block that cannot run here is a `{code-block}` directive.
PAGES = [
    str(page.relative_to(ROOT))
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "_build" not in page.parts and BLOCK.search(page.read_text(encoding="utf-8"))
]
#: Libraries that a page needs beside those of the package.
NEEDS = {"coming_from_lmfit": ("lmfit",)}


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
def test_page_runs_and_prints_what_it_shows(page, tmp_path, monkeypatch, capsys):
    """All pages run in this process, as a script each, so that they share imports and kernels."""
    for library in NEEDS.get(Path(page).stem, ()):
        pytest.importorskip(library)
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    script = tmp_path / "page.py"
    script.write_text(
        "".join(f"{code}\nprint({END_OF_BLOCK!r})\n" for code, _ in blocks), encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)

    with dask.config.set({}), mpl.rc_context():  # settings of a page end with the page
        runpy.run_path(str(script), run_name="__main__")

    output = capsys.readouterr()
    assert "Warning" not in output.err
    printed = output.out.split(END_OF_BLOCK + "\n")
    for (code, shown), text in zip_longest(blocks, printed[: len(blocks)]):
        if shown or "print(" in code:
            assert_same_text(shown, text)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_that_writes_a_store_can_be_run_again(page):
    code = "".join(code for code, _ in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")))
    made = re.findall(r"""zarr\.create_(?:array|group)\(["'][^\n]+""", code)
    assert [call for call in made if "overwrite=True" not in call] == []


def test_a_wrong_word_or_number_is_noticed():
    assert_same_text("a = 1.500 +- 0.02", "a  =  1.501 +- 0.02")
    for other in ("b = 1.500 +- 0.02", "a = 1.700 +- 0.02", "a = 1.500"):
        with pytest.raises(AssertionError):
            assert_same_text("a = 1.500 +- 0.02", other)
