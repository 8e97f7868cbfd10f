"""Checkpoints and results in files that are damaged, or hostile under a right checksum."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

#: Stands for text that JSON's writer refuses, or that no value gives.
_RAW = "@raw {}@"

#: Texts of JSON that no file of the package holds.
_TEXTS = (
    "NaN",
    "Infinity",
    "1e999",
    "1" * 401,
    "1" * 5000,
    "[" * 40 + "]" * 40,
    "[" * 5000 + "]" * 5000,
    '{"a": 1, "a": 2}',
    '"\\ud800"',
)

_VALUES = (
    *(None, True, False, -1, 0, 1, 7, 2**63, -(10**30), 0.5, -0.0, 1e308, 5e-324),
    *("", "inf", "nan", "1", "x" * 3000, "é\u202e\0", "file:///etc/passwd", "__import__('os')"),
    *([], {}, [[]], [1, [2]], [0] * 50, {"a": 1}, {"__class__": "object"}, [None], ["a"]),
)

#: A content, and the text under which it is sealed: its file.
Seal = Callable[[Any], bytes]


def _filled(text: str) -> str:
    for number, raw in enumerate(_TEXTS):
        text = text.replace(json.dumps(_RAW.format(number)), raw)
    return text


def seal_checkpoint(content: Any) -> bytes:
    """A checkpoint file of a content, with the right checksum."""
    text = _filled(json.dumps(content))
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    return json.dumps({"sha256": digest, "content": text}).encode()


def seal_result(content: Any) -> bytes:
    """A result file of its fields, with the right checksum."""
    try:  # of the text that a reader makes of the fields
        text = json.dumps(json.loads(_filled(json.dumps(content))), sort_keys=True)
    except (ValueError, RecursionError):
        text = ""
    digest = hashlib.sha256(text.encode()).hexdigest()
    envelope = {"format": "nlsq_dask result", "version": 1, "sha256": digest, "result": content}
    return _filled(json.dumps(envelope)).encode()


def content_of_checkpoint(raw: bytes) -> Any:
    """The content of a checkpoint file."""
    return json.loads(json.loads(raw)["content"])


def content_of_result(raw: bytes) -> Any:
    """The fields of a result file."""
    return json.loads(raw)["result"]


def mutated(raw: bytes, content: Any, seal: Seal, rng: random.Random) -> tuple[str, bytes]:
    """A file that is damaged in one of many ways; returns the kind of damage as well."""
    kind = rng.choice(("bytes", "cut", "noise", "content", "content", "content", "content"))
    at = rng.randrange(len(raw))
    if kind == "cut":
        return kind, raw[:at]
    if kind == "noise":
        return kind, raw[:at] + rng.randbytes(rng.randrange(1, 40)) + raw[at:]
    if kind == "bytes":
        changed = bytearray(raw)
        for _ in range(rng.choice((1, 1, 3))):
            changed[rng.randrange(len(raw))] ^= rng.randrange(1, 256)
        return kind, bytes(changed)
    tree = json.loads(json.dumps(content))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = _changed(tree, rng)
    return kind, seal(tree)


def _changed(tree: Any, rng: random.Random) -> Any:
    """A tree with one value changed, taken away, added, or put twice."""
    places = list(_places(tree))
    if not places:
        return _odd(rng)
    parent, name = rng.choice(places)
    way = rng.choice(("replace", "number", "number", "number", "remove", "add", "double", "lists"))
    if way == "number":
        parent[name] = _other_number(parent[name], rng)
    elif way == "replace":
        parent[name] = _odd(rng)
    elif way == "remove":
        del parent[name]
    elif way == "add" and isinstance(parent, dict):
        parent[rng.choice(("new", "", "__class__"))] = _odd(rng)
    elif way == "double" and isinstance(parent, list):
        parent.insert(name, parent[name])
    else:
        parent[name] = [parent[name]]
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    names = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for name in names:
        yield tree, name
        yield from _places(tree[name])


def _other_number(value: Any, rng: random.Random) -> Any:
    """Another value of the same type, for a number or a truth value."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((0, 1, 2, 7, 2**40, 2**63 - 1))
    if isinstance(value, float):
        return rng.choice((0.0, -0.0, -value, 1e-3 * value, 1e308, -1e308, 5e-324, "inf", "nan"))
    return value


def _odd(rng: random.Random) -> Any:
    number = rng.randrange(len(_VALUES) + len(_TEXTS))
    if number < len(_VALUES):
        return json.loads(json.dumps(_VALUES[number]))
    return _RAW.format(number - len(_VALUES))
