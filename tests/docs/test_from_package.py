"""What pages take from the package: every error with its remedy, every status, every preset."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from nlsq_dask import Status, _errors
from nlsq_dask._errors import data, files, memory, solver

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {path: path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}


@pytest.fixture(scope="module")
def parts():
    """The module that fills in pages; `docs` is a folder of no package."""
    spec = importlib.util.spec_from_file_location("from_package", DOCS / "from_package.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def troubleshooting(parts):
    return parts.troubleshooting()


def test_each_part_is_asked_for_by_one_page(parts):
    asked = [name for text in PAGES.values() for name in parts.ASKED.findall(text)]
    assert sorted(asked) == sorted(parts.PARTS)


def test_a_page_gets_the_part_that_it_asks_for(parts):
    page = "before\n\n<!-- from the package: goals -->\n\nafter\n"
    assert parts.filled(page) == f"before\n\n{parts.PARTS['goals']()}\n\nafter\n"


def test_every_status_is_listed_with_its_message(parts):
    table = parts.statuses()
    for status in Status:
        success = "yes" if status.success else "no"
        assert f"| `{status.name}` | {int(status)} | {success} | {status.message} |" in table


def test_every_kind_of_failure_that_is_built_is_listed(troubleshooting):
    builders = [f for _, f in inspect.getmembers(_errors, inspect.isfunction)]
    built = {inspect.signature(f).return_annotation for f in builders}
    named = {name for name in built if isinstance(name, str) and hasattr(_errors.kinds, name)}
    # Their texts are those of a status or of a count, without a remedy of their own.
    quoting = {"ConvergenceWarning", "ConvergenceError"}
    assert len(named) > 15
    assert [name for name in sorted(named - quoting) if f"(`{name}`)" not in troubleshooting] == []


def test_nearly_every_text_has_message_and_remedy(troubleshooting):
    entries = troubleshooting.count("\n: *Remedy:* ")
    assert entries > 250
    assert len(re.findall(r"^.+ \(`\w+`\)$", troubleshooting, re.MULTILINE)) == entries
    assert not re.search(r"^: \*(?:Cause|Remedy):\* *$", troubleshooting, re.MULTILINE)


@pytest.mark.parametrize(
    "error",
    [
        data.unknown_chunks("counts"),
        data.fill_value_does_not_fit(3.5, "int16"),
        files.path_unusable("checkpoint", "a\0b"),
        memory.memory_too_small(10**9, 4, 2e9),
        solver.p0_length(2, ["a", "b", "c"]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_text_is_the_one_that_the_error_has(parts, troubleshooting, error):
    """Message, cause and remedy of one entry, with any value for ‹name›, make the text."""
    matches = 0
    for found in re.findall(r"^(.+) \(`\w+`\)((?:\n: .+)+)", troubleshooting, re.MULTILINE):
        pieces = [found[0], *re.findall(r"\n: \*\w+:\* (.+)", found[1])]
        pattern = r"(?:sothat|since|because|but)?".join(map(any_value, pieces))
        matches += bool(re.fullmatch(pattern, squeezed(str(error))))
    assert matches == 1


def any_value(piece):
    """A pattern for a text as Markdown, with any value for ‹name›."""
    words = re.split(r"(‹[^›]*›)", squeezed(re.sub(r"\\(.)", r"\1", piece)))
    return "".join(".*" if word.startswith("‹") else re.escape(word) for word in words)


def squeezed(text):
    """Without what stands between message, cause and remedy."""
    return re.sub(r"[\s,:]+", "", text)
