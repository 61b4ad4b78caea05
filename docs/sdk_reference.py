"""The reference of the Python SDK, read from its source: signatures, docstrings and comments of fields."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["sdk"]

_CLIENT = Path(__file__).parents[1] / "services/fsr/client"
_WIDTH = 100  # of a signature, in characters
_FIRST = ("Client", "AsyncClient", "Tls", "Message", "GenerateOptions", "Video", "Answer", "KeptTokens")
_PYTHONS = ("Exception", "TypedDict", "NamedTuple", "Protocol")  # bases that say nothing to a caller
Definition = ast.FunctionDef | ast.AsyncFunctionDef


class _Constants(ast.NodeTransformer):
    """Puts values in place of the names of constants: a default says more than its name."""

    def __init__(self, modules: Iterable[ast.Module]) -> None:
        self._values = {name: value for name, value in _assigned(modules) if isinstance(value, ast.Constant)}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._values.get(node.id, node)


def sdk() -> str:
    """Everything that `fsr.client` exports, module by module, then the types that signatures name."""
    paths = sorted(path for path in _CLIENT.rglob("*.py") if path != _CLIENT / "__init__.py")
    files = {path: path.read_text() for path in paths}
    trees = {path: ast.parse(text) for path, text in files.items()}
    exported = _exported()
    constants, lines = _Constants(trees.values()), []
    for path in sorted(trees, key=lambda path: _place(trees[path], exported)):
        tree, entries = trees[path], []
        for node in tree.body:
            if isinstance(node, ast.ClassDef | Definition) and node.name in exported and not _in_tree(node):
                entries += _entry(node, files[path].splitlines(), constants)
        if entries:
            doc = ast.get_docstring(tree) or ""
            lines += [f"## {doc.splitlines()[0].rstrip('.').partition(':')[0]}", ""]
            lines += ["```", *doc.splitlines()[2:], "```", ""] if "├" in doc else []
            lines += entries
    return "\n".join([*lines, *_types("\n".join(lines), list(_assigned(trees.values())))]).rstrip()


def _exported() -> list[str]:
    """The names of `__all__`."""
    for statement in ast.parse((_CLIENT / "__init__.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return list(ast.literal_eval(statement.value))
    raise ValueError("fsr.client: has no __all__")


def _place(tree: ast.Module, exported: list[str]) -> int:
    """Where a module comes: what is called first, then what goes in and comes out, errors last."""
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name in exported}
    first = [number for number, name in enumerate(_FIRST) if name in names]
    return min(first, default=len(_FIRST)) + len(_FIRST) * ("ClientError" in names)


def _in_tree(node: ast.ClassDef | Definition) -> bool:
    """Whether the tree of errors says all about this one: it is a `ClientError` with a docstring and nothing else."""
    return isinstance(node, ast.ClassDef) and len(node.body) == 1 and "ClientError" in map(ast.unparse, node.bases)


def _assigned(modules: Iterable[ast.Module]) -> Iterator[tuple[str, ast.expr]]:
    """Names that modules give to values and types."""
    for statement in (statement for module in modules for statement in module.body):
        if isinstance(statement, ast.Assign):
            yield from ((target.id, statement.value) for target in statement.targets if isinstance(target, ast.Name))


def _types(text: str, assigned: list[tuple[str, ast.expr]]) -> list[str]:
    """The types that the text names, such as `Budget`, and those that these name."""
    types = {name: ast.unparse(value) for name, value in assigned if isinstance(value, ast.BinOp | ast.Subscript)}
    found: list[str] = []
    todo = [text]
    while todo:
        words = re.findall(r"[A-Z]\w+", todo.pop())
        new = [name for name in types if name in words and name not in found]
        found += new
        todo += [types[name] for name in new]
    lines = [f"- `{name}` is `{types[name]}`".replace("'", '"') for name in found]
    return ["## Types that signatures name", "", *lines] if lines else []


def _entry(node: ast.ClassDef | Definition, source: list[str], constants: _Constants) -> list[str]:
    lines = [f"### `{node.name}`", "", *_doc(node)]
    if not isinstance(node, ast.ClassDef):
        return [*lines[:2], *_signature(node, constants), *lines[2:]]
    if bases := [base for base in map(ast.unparse, node.bases) if base not in _PYTHONS]:
        lines += ["Also has what " + " and ".join(f"`{base}`" for base in bases) + " has.", ""]
    fields = [_field(part, source) for part in node.body if isinstance(part, ast.AnnAssign)]
    methods = [part for part in node.body if isinstance(part, Definition) and _is_public(part)]
    fields += [_property(part) for part in methods if _is_property(part)]
    lines += [*fields, ""] if fields else []
    for part in methods:
        if not _is_property(part):
            lines += [*_signature(part, constants), *_doc(part)]
    return lines


def _is_public(part: Definition) -> bool:
    """Constructors of dataclasses have no parameters to show, and `of` is for messages of the wire."""
    if part.name == "__init__":
        return bool(part.args.kwonlyargs)
    return not part.name.startswith("_") and part.name != "of"


def _is_property(part: Definition) -> bool:
    return any(ast.unparse(decorator) == "property" for decorator in part.decorator_list)


def _property(part: Definition) -> str:
    """A property reads like a field."""
    doc = " ".join((ast.get_docstring(part) or "").split())
    return f"- `{part.name}: {ast.unparse(part.returns) if part.returns else 'Any'}`" + (f": {doc}" if doc else "")


def _field(part: ast.AnnAssign, source: list[str]) -> str:
    """A field, its type, its default, and the comment `#:` above it."""
    comment: list[str] = []
    line = part.lineno - 2
    while source[line].lstrip().startswith("#:"):
        comment.insert(0, source[line].strip().removeprefix("#:").strip())
        line -= 1
    return f"- `{ast.unparse(part)}`" + (f": {' '.join(comment)}" if comment else "")


def _signature(node: Definition, constants: _Constants) -> list[str]:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    head = ("async def " if isinstance(node, ast.AsyncFunctionDef) else "def ") + node.name
    arguments = [text for text in _arguments(constants.visit(node.args)) if text not in ("self", "cls")]
    text = ", ".join(arguments)
    if len(head) + len(text) + len(returns) > _WIDTH:
        text = "\n    " + ",\n    ".join(arguments) + ",\n"
    return ["```python", f"{head}({text}){returns}: ...", "```", ""]


def _arguments(arguments: ast.arguments) -> Iterator[str]:
    def shown(argument: ast.arg, default: ast.expr | None, stars: str = "") -> str:
        text = stars + argument.arg + (f": {ast.unparse(argument.annotation)}" if argument.annotation else "")
        return f"{text} = {ast.unparse(default)}".replace("'", '"') if default else text

    missing = [None] * (len(arguments.args) - len(arguments.defaults))
    yield from map(shown, arguments.args, [*missing, *arguments.defaults])
    if arguments.vararg:
        yield shown(arguments.vararg, None, "*")
    elif arguments.kwonlyargs:
        yield "*"
    yield from map(shown, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg:
        yield shown(arguments.kwarg, None, "**")


def _doc(node: ast.ClassDef | Definition) -> list[str]:
    doc = inspect.cleandoc(ast.get_docstring(node) or "")
    return [doc, ""] if doc else []
