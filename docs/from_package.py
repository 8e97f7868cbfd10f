"""Parts of the documentation that come from the package: tables of presets, statuses, errors.

A page asks for a part by a comment, ``<!-- from the package: troubleshooting -->``, and gets it as
Markdown when Sphinx reads the page. So no text of an error and no number of a preset is written
twice.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from nlsq_dask import Status
from nlsq_dask._errors import kinds
from nlsq_dask.core import workflow

ERRORS = Path(workflow.__file__).parents[1] / "_errors"
ASKED = re.compile(r"^<!-- from the package: (\w+) -->$", re.MULTILINE)

#: A value that an error names, as it is written in the place of the value.
VALUE = "‹{}›"


def table(*rows: tuple[str, ...]) -> str:
    """A table in Markdown; the first row is its head."""
    head, *body = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def statuses() -> str:
    """Every status with its number, whether it is a success, and its message."""
    rows = [
        (f"`{s.name}`", f"{int(s)}", "yes" if s.success else "no", s.message)
        for s in sorted(Status, key=lambda s: (not s.success, abs(s)))
    ]
    return table(("status", "number", "success", "meaning"), *rows)


def troubleshooting() -> str:
    """What ends a fit without success; and of each file of errors, its errors and warnings."""
    ended = [entry("`" + s.name + "`", *parted(s.message)) for s in Status if not s.success]
    sections = ["## A fit that ends without success\n\n" + "\n\n".join(ended)]
    for path in sorted(ERRORS.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        known = assigned(tree, {})
        entries = [text for node in tree.body for text in entries_of(node, known)]
        if entries:
            subject = (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")
            sections.append(f"## {subject}\n\n" + "\n\n".join(entries))
    return "\n\n".join(sections)


def entries_of(node: ast.stmt, known: dict[str, str]) -> Iterator[str]:
    """An entry for each text of a function that builds errors or warnings."""
    if not isinstance(node, ast.FunctionDef):
        return
    names = known | assigned(node, known)
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and call.args and (kind := kind_of(call)):
            said, remedy = parted(written(call.args[-1], names))
            if re.sub(VALUE.format("[^›]*"), "", remedy).strip(". "):
                yield entry(f"`{kind}`", said, remedy)


def entry(kind: str, said: str, remedy: str) -> str:
    """Message, cause and remedy of one failure, as a definition in Markdown."""
    message, *cause = CAUSE.split(said, maxsplit=1)
    lines = [f"{plain(message)} ({kind})"]
    if cause:
        lines.append(f": *Cause:* {plain(cause[0])}")
    lines.append(f": *Remedy:* {plain(remedy)}")
    return "\n".join(lines)


def plain(text: str) -> str:
    """A text in Markdown that is shown as it is."""
    return re.sub(r"([*$<\[\\])", r"\\\1", " ".join(text.split()))


def kind_of(call: ast.Call) -> str:
    """The name of the package's class of failure that a call makes, or nothing."""
    made = call.func.value if isinstance(call.func, ast.Attribute) else call.func
    name = made.id if isinstance(made, ast.Name) else ""
    return name if hasattr(kinds, name) and name.endswith(("Error", "Warning")) else ""


def assigned(scope: ast.Module | ast.FunctionDef, known: dict[str, str]) -> dict[str, str]:
    """Texts of the names of a scope; of a name with several texts, all of them."""
    texts: dict[str, list[str]] = {}
    for node in ast.walk(scope) if isinstance(scope, ast.FunctionDef) else scope.body:
        match node:
            case ast.Assign(targets=[ast.Name(name)], value=value):
                pass
            case ast.Call(func=ast.Attribute(value=ast.Name(name), attr="append"), args=[value]):
                pass
            case _:
                continue
        if isinstance(value, ast.Constant | ast.JoinedStr | ast.BinOp | ast.IfExp):
            texts.setdefault(name, []).append(written(value, known))
    return {name: " / ".join(filter(None, several)) for name, several in texts.items()}


def written(node: ast.expr, names: dict[str, str]) -> str:
    """The text of an expression, with the names of values in their places."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(written(part, names) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return written(node.value, names)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return written(node.left, names) + written(node.right, names)
    if isinstance(node, ast.IfExp):
        return " / ".join(filter(None, (written(n, names) for n in (node.body, node.orelse))))
    name = name_of(node)
    joined = isinstance(node, ast.Call) and ast.unparse(node).endswith(f".join({name})")
    if name in names and (joined or isinstance(node, ast.Name)):
        return names[name]
    return VALUE.format(name)


def name_of(node: ast.expr) -> str:
    """What to call a value: the name that it is computed from."""
    if isinstance(node, ast.Attribute) and not node.attr.startswith("_"):
        return node.attr
    called = {id(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}
    values = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and id(n) not in called]
    return values[0] if values else "..."


#: The colon before a remedy stands outside of brackets, and is no part of code.
COLON = re.compile(r": ")
BRACKETED = re.compile(r"[(\[{][^()\[\]{}]*[)\]}]|def \w+\.*:")
#: Words before a cause; "which" only where it begins the last clause.
CAUSE = re.compile(
    r",? (?:so that|since|because|but) |(?<! from)(?<! by)(?<! in),? (?=which [^,]*$)"
)


def parted(text: str) -> tuple[str, str]:
    """What a text says, and its remedy: what follows the last colon."""
    outside, inside = text, ""
    while outside != inside:
        inside = outside
        outside = BRACKETED.sub(lambda found: "." * len(found[0]), inside)
    colons = list(COLON.finditer(outside))
    if not colons:
        said, _, remedy = text.partition(". ")
        return said, remedy
    return text[: colons[-1].start()], text[colons[-1].end() :]


PARTS: dict[str, Callable[[], str]] = {
    "statuses": statuses,
    "troubleshooting": troubleshooting,
    "workflows": workflow.workflow_table,
    "goals": workflow.goal_table,
    "tolerances": workflow.tolerance_table,
}


def filled(text: str) -> str:
    """A page with the parts that it asks for."""
    return ASKED.sub(lambda asked: PARTS[asked[1]](), text)
