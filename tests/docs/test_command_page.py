"""The page of the command runs as printed: its Python first, and then each line after a prompt."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from nlsq_dask.command.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "command.md").read_text(encoding="utf-8")
PYTHON = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n\$ nlsq-dask (.*?)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def assert_shown(shown, printed):
    """Equal words, where an ellipsis stands for any."""
    pattern = r"\s+".join(map(re.escape, shown.split())).replace(re.escape("..."), ".*?")
    assert re.fullmatch(
        pattern + (".*" if shown.strip().endswith("...") else ""), printed.strip(), re.S
    )


@pytest.mark.slow
def test_the_page_of_the_command_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    for code in PYTHON.findall(PAGE):
        exec(code, {})
    blocks = CONSOLE.findall(PAGE)
    assert len(blocks) == 3
    for words, shown in blocks:
        assert main(shlex.split(words)) == 0
        assert_shown(shown, capsys.readouterr().out)
