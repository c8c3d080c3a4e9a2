"""Hyper-parameters of the classes in a file, read from its text: nothing is imported."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent.parent
KINDS = ("number", "size", "choice", "flag", "interval", "words", "part", "same_as")
LONGEST = 40  # characters of a default; longer ones are cut to the name of their class


class Field(NamedTuple):
    """A declared field. ``values`` are what it may be, in words; "" for parts and switches."""

    name: str
    kind: str
    default: str
    values: str
    help: str


def table(fields: list[Field]) -> str:
    """Return fields as a Markdown table."""
    rows = ["| name | default | values | meaning |", "|---|---|---|---|"]
    for field in fields:
        kind = field.values or {"part": "part", "flag": "true, false"}.get(field.kind, "")
        cells = [f"`{field.name}`", f"`{field.default}`", kind, field.help]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


@cache
def declared(path: Path) -> dict[str, list[Field]]:
    """Return the declared fields of each class of a file; those of its bases come first."""
    body = ast.parse(path.read_text()).body
    elsewhere = _imported(body)
    texts = {name: _texts_of(path).get(name) for name, path in elsewhere.items()} | _texts(body)
    found: dict[str, list[Field]] = {}
    for node in body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields: dict[str, Field] = {}
        for base in map(ast.unparse, node.bases):
            known = (
                found if base in found else declared(elsewhere[base]) if base in elsewhere else {}
            )
            fields |= {field.name: field for field in known.get(base, [])}
        own = [_field(each, texts) for each in node.body]
        fields |= {field.name: field for field in own if field is not None}
        found[node.name] = list(fields.values())
    return found


@cache
def _texts_of(path: Path) -> dict[str, Any]:
    return _texts(ast.parse(path.read_text()).body)


def _texts(body: list[ast.stmt]) -> dict[str, Any]:
    """The constants of a module, and the strings of its ``Literal``s, by name."""
    found: dict[str, Any] = {}
    for node in body:
        if not isinstance(node, ast.Assign):
            continue
        name = ast.unparse(node.targets[0])
        if isinstance(node.value, ast.Constant):
            found[name] = node.value.value
        elif isinstance(node.value, ast.Subscript) and ast.unparse(node.value.value) == "Literal":
            found[name] = ast.literal_eval(node.value.slice)
    return found


def _imported(body: list[ast.stmt]) -> dict[str, Path]:
    """The files of the library that a module imports names from, by these names."""
    found = {}
    for node in body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jaxrl."):
            path = ROOT / f"{str(node.module).replace('.', '/')}.py"
            found |= {each.name: path for each in node.names if path.exists()}
    return found


def _field(node: ast.stmt, texts: dict[str, Any]) -> Field | None:
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.value, ast.Call):
        return None
    kind = ast.unparse(node.value.func)
    if kind not in KINDS:
        return None
    said = {each.arg: each.value for each in node.value.keywords}
    args = node.value.args
    default = _short(args[0]) if args else ""
    values = _values(kind, args[1:], said, texts)
    if kind == "same_as":
        default, values = "", f"as `{ast.unparse(args[0])}.{ast.literal_eval(args[1])}`"
    about = said.get("help", ast.Constant(""))
    text = about.value if isinstance(about, ast.Constant) else texts.get(ast.unparse(about), "")
    return Field(ast.unparse(node.target), kind, default, values, text)


def _short(node: ast.expr) -> str:
    text = ast.unparse(node)
    if len(text) > LONGEST and isinstance(node, ast.Call):
        return f"{ast.unparse(node.func)}(...)"
    return text


def _values(
    kind: str, args: list[ast.expr], said: dict[str | None, ast.expr], texts: dict[str, Any]
) -> str:
    if kind == "choice":
        choices = texts.get(ast.unparse(args[0]))
        return ", ".join(f"`{each}`" for each in choices) if choices else ast.unparse(args[0])
    if kind == "size":
        return f"integer, at least {ast.unparse(args[0]) if args else 1}"
    if kind != "number":
        return ""
    low, high = ([ast.unparse(each) for each in args] + ["", ""])[:2]
    if "above" in said:
        return f"more than {ast.unparse(said['above'])}" + (f", at most {high}" if high else "")
    if low and high:
        return f"{low} to {high}"
    return f"at least {low}" if low else "any number"
