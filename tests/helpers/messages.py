"""Every message that a person can be given, read from the source: `python tests/helpers/messages.py` lists them.

Errors of ours and of click, ValueErrors (which recipes turn into messages), warnings. What is filled in stands in
braces; a message that is chosen or put together on the way stands there in all its forms.
"""

from __future__ import annotations

import ast
import itertools
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "tests" / "messages.txt"
FOLDERS = ("infra", "kernels", "model", "pipelines", "stages")
ALSO = {"ValueError", "UsageError", "BadParameter", "ClickException", "BadOptionUsage", "MissingParameter"}
"""Besides those that end in RwkvFusionError: what click shows, and what recipes and options turn into messages."""
FORMS = 3
"""The most forms of one message that are listed."""


def sources() -> dict[str, ast.Module]:
    """Syntax trees by path in the project."""
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def classes(trees: dict[str, ast.Module]) -> set[str]:
    """Names of the error classes whose messages are shown."""
    bases = {
        node.name: {_last(base) for base in node.bases}
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    shown = {"RwkvFusionError"}
    while more := {name for name, above in bases.items() if above & shown} - shown:
        shown |= more
    return shown | ALSO


@cache
def messages() -> list[tuple[str, str, str]]:
    """(file, kind, message) of each, in the order of the files and of their lines."""
    trees = sources()
    shown = classes(trees)
    found: list[tuple[str, str, str]] = []
    for path, tree in trees.items():
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for scope, call in _calls(tree):
            name = _last(call.func)
            if not call.args or not (name in shown or name == "warn"):
                continue
            kind = "warning" if name == "warn" else name
            # Of a pair that is left out, the kind of it comes first.
            found += [(path, kind, text) for text in _texts(call.args[name == "PairError"], scope, functions)]
    return list(dict.fromkeys(found))


def _calls(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.Call]]:
    """Each call with the innermost function that it is in."""

    def walk(node: ast.AST, scope: ast.AST) -> Iterator[tuple[ast.AST, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                yield scope, child
            yield from walk(child, child if isinstance(child, ast.FunctionDef) else scope)

    return walk(tree, tree)


def _texts(node: ast.expr, scope: ast.AST, functions: dict[str, ast.FunctionDef], depth: int = 0) -> list[str]:
    """The forms that a string can take."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return _joined([_texts(part, scope, functions, depth) for part in node.values])
    if isinstance(node, ast.FormattedValue):
        inner = _texts(node.value, scope, functions, depth)
        return inner if node.conversion == -1 else [f"{{{ast.unparse(node.value)}}}"]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _joined([_texts(part, scope, functions, depth) for part in (node.left, node.right)])
    if isinstance(node, ast.IfExp):
        return [text for part in (node.body, node.orelse) for text in _texts(part, scope, functions, depth)]
    if depth < 3 and isinstance(node, ast.Name):
        values = [value for value in _assigned(node.id, scope) if _is_text(value, functions)]
        if values:
            return [text for value in values for text in _texts(value, scope, functions, depth + 1)][:FORMS]
    if depth < 3 and isinstance(node, ast.Call) and (function := functions.get(_last(node.func))) is not None:
        values = [inner.value for inner in ast.walk(function) if isinstance(inner, ast.Return) and inner.value]
        if values and all(_is_text(value, functions) for value in values):
            return [text for value in values for text in _texts(value, function, functions, depth + 1)][:FORMS]
    return [f"{{{ast.unparse(node)}}}"]


def _joined(parts: list[list[str]]) -> list[str]:
    return ["".join(forms) for forms in itertools.islice(itertools.product(*parts), FORMS)]


def _assigned(name: str, scope: ast.AST) -> list[ast.expr]:
    return [
        node.value
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets)
    ]


def _is_text(node: ast.expr, functions: dict[str, ast.FunctionDef]) -> bool:
    """Whether it is words of the source, at least in part."""
    if isinstance(node, ast.IfExp):
        return _is_text(node.body, functions) or _is_text(node.orelse, functions)
    if isinstance(node, ast.BinOp):
        return _is_text(node.left, functions) or _is_text(node.right, functions)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def listed() -> str:
    """The list as it is kept in `tests/messages.txt`."""
    lines: list[str] = []
    for path, found in itertools.groupby(messages(), key=lambda message: message[0]):
        lines += ["", f"# {path}", *(f"{kind}: {' '.join(text.split())}" for _, kind, text in found)]
    return "\n".join(lines[1:]) + "\n"


if __name__ == "__main__":
    LIST.write_text(listed(), encoding="utf-8")
    sys.stdout.write(f"{LIST}: {len(messages())} messages\n")
