"""What a feature's values depend on beside the data, as a hash: its declaration, its settings, and the code itself.

The code is read as source text, so that nothing need be imported: the function's syntax tree with everything of ours
that it refers to. Comments, docstrings, types and layout change no hash; another window does.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from evensong.features.declarations import Feature, View
from evensong.settings import Settings

#: Their code says how things are configured and refused, not what a feature is.
_NOT_FOLLOWED = ("evensong.settings", "evensong.errors", "evensong.data")


def view_definition(view: View, settings: Settings) -> str:
    """Changes when the view's rows may be other ones from the same data."""
    features = [[feature.name, str(feature.dtype), feature.declared] for feature in view.features]
    return short_hash([*_of_view(view, settings), features])


def feature_version(view: View, feature: Feature, settings: Settings) -> str:
    """Changes when the feature's values may be other ones from the same data."""
    described = [feature.name, str(feature.dtype), view.window(feature, settings), feature.declared]
    return short_hash([*_of_view(view, settings), view.ttl.total_seconds(), described])


def code_hash(function: str) -> str:
    """A hash of what `module:name` computes: its syntax tree and those of everything of ours that it refers to."""
    return _code_hash(function, _tree)


@functools.cache  # the code of a running process does not change, and a night asks hundreds of times
def _code_hash(function: str, tree_of: Callable[[str], ast.Module]) -> str:
    module, _, name = function.partition(":")
    pieces = {f"{where}:{what}": ast.dump(node) for where, what, node in _closure(module, name, tree_of)}
    return short_hash(sorted(pieces.items()))


def place_of(function: Callable[..., Any]) -> str:
    """A function as `module:name`."""
    return f"{function.__module__}:{function.__qualname__}"


def short_hash(content: Any) -> str:
    """A hash of what JSON can write."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _of_view(view: View, settings: Settings) -> list[Any]:
    functions = [function for function in (view.function, view.input.function) if function is not None]
    code = [code_hash(place_of(function)) for function in functions]
    return [view.name, view.entity, view.input.name, list(view.input.tables), view.parameters(settings), code]


def _closure(module: str, name: str, tree_of: Callable[[str], ast.Module]) -> Iterator[tuple[str, str, ast.AST]]:
    """The definition of a name and of all names of ours that it refers to, each once, bare."""
    waiting, seen = [(module, name)], {(module, name)}
    while waiting:
        where, what = waiting.pop()
        tree = tree_of(where)
        definitions, imports = _definitions(tree), _imports(tree)
        if what not in definitions:
            continue
        node = _bare(definitions[what])
        yield where, what, node
        for found in ast.walk(node):
            if not isinstance(found, ast.Name | ast.Attribute):
                continue
            target = _target(found, where, definitions, imports)
            if target and target not in seen:
                seen.add(target)
                waiting.append(target)


def _target(
    node: ast.Name | ast.Attribute,
    where: str,
    definitions: Mapping[str, ast.AST],
    imports: Mapping[str, tuple[str, str]],
) -> tuple[str, str] | None:
    """What of ours a name refers to."""
    if isinstance(node, ast.Name):
        target = (where, node.id) if node.id in definitions else imports.get(node.id)
    elif isinstance(node.value, ast.Name) and node.value.id in imports:
        module, name = imports[node.value.id]
        target = (f"{module}.{name}", node.attr)
    else:
        return None
    followed = target and target[0].startswith("evensong.") and not target[0].startswith(_NOT_FOLLOWED)
    return target if followed else None


@functools.cache
def _tree(module: str) -> ast.Module:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        return ast.Module(body=[], type_ignores=[])
    return ast.parse(Path(spec.origin).read_text())


@functools.cache
def _definitions(tree: ast.Module) -> dict[str, ast.AST]:
    found: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {name.id: node for t in node.targets for name in ast.walk(t) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


@functools.cache
def _imports(tree: ast.Module) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return found


@functools.cache
def _bare(node: ast.AST) -> ast.AST:
    """The node without what says nothing of what is computed: docstrings, annotations, descriptions of features."""
    return _Bare().visit(ast.parse(ast.unparse(node)))


class _Bare(ast.NodeTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        return self._without_docstring(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "Feature":
            node.args, node.keywords = node.args[:2], []  # its name and its type
        return node

    @staticmethod
    def _without_docstring(node: Any) -> ast.AST:
        texts = [
            part
            for part in node.body
            if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)
        ]
        node.body = [part for part in node.body if part not in texts] or [ast.Pass()]
        found: ast.AST = node
        return found
