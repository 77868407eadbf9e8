"""The feature dictionary: every feature with type, owner, meaning, source and window, and a version of its definition.

Nothing is written down twice: the views are read from the declarations in `feature_repo/` and from the modules that
declare further ones, as source text, so that neither Feast nor the features are imported. A version is a hash of the
declaration (name, type, entity, source, settings that the code reads) and of the code itself: the function's syntax
tree with everything of ours that it refers to. Comments, docstrings and layout change no version; another window does.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evensong.errors import BundleError, ConfigurationError
from evensong.features import item_features, user_features
from evensong.features.columns import ColumnsFile, load_columns, nearest, places_of
from evensong.features.declarations import ViewDeclaration
from evensong.features.shop_columns import OPTIONAL_VIEWS, active_views
from evensong.features.store import repository
from evensong.settings import Settings
from evensong.types import Value

_TRANSFORMATIONS = "evensong.features.transformations"
_COLUMNS = "evensong.features.fitted_columns:fit"
_ENTITIES = {"user": "user_id", "item": "item_id"}
#: What the parameters of a transformation hold, and the function that makes it where it is not a table itself.
_INPUTS = {
    "positives": ("interactions", "positive_events"),
    "interactions": ("interactions", None),
    "items": ("items", None),
}
#: Objects whose attributes are settings, by the name that the functions give them.
_SETTINGS = {"settings": "features", "split": "split"}
#: Their code says how things are configured and refused, not what a feature is.
_NOT_FOLLOWED = ("evensong.settings", "evensong.errors", "evensong.data")


class FeatureEntry(Value):
    """One feature."""

    name: str
    """`view.feature`."""
    type: str
    entity: str
    owner: str
    description: str
    source: str
    """The tables of the lake that it comes from."""
    window: str
    function: str
    parameters: dict[str, str]
    """The settings that its value depends on."""
    services: tuple[str, ...]
    """The feature services that hand it to models; none: computed, but not served."""
    version: str


class Change(Value):
    """A feature that two dictionaries describe differently."""

    name: str
    fields: dict[str, tuple[str, str]]
    """Field to its value before and after; `version` among them when the definition changed."""


class Difference(Value):
    """What lies between two dictionaries."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[Change, ...]


class Dictionary(Value):
    """All features, sorted by name."""

    features: tuple[FeatureEntry, ...]

    @property
    def version(self) -> str:
        """Changes when a feature comes, goes, or is defined differently."""
        return _hash([[feature.name, feature.version, list(feature.services)] for feature in self.features])

    def show(self, name: str) -> FeatureEntry:
        """The feature of that name; the view may be left out where that is clear.

        Raises:
            ConfigurationError: there is none, or there are several.
        """
        found = [f for f in self.features if f.name == name or f.name.partition(".")[2] == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigurationError(f"{name} is the name of several features: {', '.join(f.name for f in found)}")
        names = {f.name for f in self.features} | {f.name.partition(".")[2] for f in self.features}
        raise ConfigurationError(f"no feature is called {name}{nearest(name, names)}")


def build_dictionary(settings: Settings) -> Dictionary:
    """The dictionary of this code under these settings."""
    features = settings.features
    declared = [
        *user_features.views(features.half_life_days, features.sequence_length),
        *item_features.views(features.half_life_days),
    ]
    entries = list(_repository_entries(settings, {view.name: view for view in declared}))
    served = {entry.name.partition(".")[0] for entry in entries}
    for view in declared:
        if view.name not in served:
            entries.extend(_declared_entries(view, services=()))
    if features.columns_path is not None:
        entries.extend(_column_entries(load_columns(features.columns_path)))
    return Dictionary(features=tuple(sorted(entries, key=lambda entry: entry.name)))


def list_features(settings: Settings) -> list[FeatureEntry]:
    """Every feature, sorted by name."""
    return list(build_dictionary(settings).features)


def show(settings: Settings, name: str) -> FeatureEntry:
    """One feature; see `Dictionary.show`."""
    return build_dictionary(settings).show(name)


def dictionary_version(settings: Settings) -> str:
    """The version for a bundle's manifest."""
    return build_dictionary(settings).version


def diff(before: Dictionary, after: Dictionary) -> Difference:
    """What came, went and changed from one dictionary to another."""
    old = {feature.name: feature for feature in before.features}
    new = {feature.name: feature for feature in after.features}
    changed = []
    for name in sorted(old.keys() & new.keys()):
        was, now = old[name].model_dump(mode="json"), new[name].model_dump(mode="json")
        fields = {field: (_text(was[field]), _text(now[field])) for field in was if was[field] != now[field]}
        if fields:
            changed.append(Change(name=name, fields=fields))
    return Difference(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(changed),
    )


def for_manifest(dictionary: Dictionary, service: str) -> dict[str, Any]:
    """What a bundle's manifest records of the features that its models read.

    Raises:
        ConfigurationError: no feature belongs to the service.
    """
    features = {entry.name: entry.version for entry in dictionary.features if service in entry.services}
    if not features:
        services = {name for entry in dictionary.features for name in entry.services}
        raise ConfigurationError(f"no feature service is called {service}{nearest(service, services)}")
    return {"service": service, "dictionary_version": dictionary.version, "versions": features}


def check_served(manifest: Mapping[str, Any], served: Dictionary | Mapping[str, Any]) -> None:
    """Refuses a bundle whose features the store does not serve, by name and by definition.

    Args:
        manifest: what `for_manifest` gave when the bundle was made.
        served: the dictionary of the code that fills the store, or what `for_manifest` gave when it was filled.

    Raises:
        BundleError: a feature is missing or defined differently, or the manifest records none.
    """
    versions = manifest.get("versions")
    service = str(manifest.get("service"))
    if not isinstance(versions, Mapping) or not versions:
        raise BundleError("the bundle's manifest names no features; train and register it again")
    if isinstance(served, Dictionary):
        there = {entry.name: entry.version for entry in served.features if service in entry.services}
    else:
        there = dict(served.get("versions", {})) if served.get("service") == service else {}
    missing = sorted(name for name in versions if name not in there)
    changed = sorted(name for name, version in versions.items() if name in there and there[name] != version)
    problems = [f"not served: {', '.join(missing)}"] if missing else []
    problems += [f"defined differently: {', '.join(changed)}"] if changed else []
    if problems:
        raise BundleError(
            f"the bundle was trained on other features of {service} than are served ({'; '.join(problems)}); "
            "serve it with the code that it was trained with, or train again"
        )


def code_hash(function: str) -> str:
    """A hash of what `module:name` computes: its syntax tree and those of everything of ours that it refers to."""
    module, _, name = function.partition(":")
    pieces = {f"{where}:{what}": ast.dump(_bare(node)) for where, what, node in _closure(module, name)}
    return _hash(sorted(pieces.items()))


def _repository_entries(settings: Settings, declared: Mapping[str, ViewDeclaration]) -> Iterator[FeatureEntry]:
    """The features of the views that `feature_repo/` declares."""
    repo = repository()
    views = {str(call["name"]): call for call in _calls(repo / "feature_views.py", "FeatureView").values()}
    variables = {
        variable: str(call["name"]) for variable, call in _calls(repo / "feature_views.py", "FeatureView").items()
    }
    services: dict[str, list[str]] = {name: [] for name in views}
    for call in _calls(repo / "feature_services.py", "FeatureService").values():
        for variable in call["features"]:
            services[variables[str(variable)]].append(str(call["name"]))
    # an optional view that no column reads is declared, and stays empty
    services |= {view: [] for view in OPTIONAL_VIEWS.keys() - active_views(settings.features)}
    for name, call in views.items():
        if name in declared:
            yield from _declared_entries(declared[name], services=tuple(sorted(services[name])))
            continue
        function = f"{_TRANSFORMATIONS}:{name}"
        source, parameters, makers = _inputs(name, settings)
        code = _hash([code_hash(part) for part in [function, *makers]])
        for field in call["schema"]:
            if field["name"] in _ENTITIES.values():
                continue
            definition = [name, str(call["entities"]), field["name"], str(field["dtype"]), source, parameters, code]
            yield FeatureEntry(
                name=f"{name}.{field['name']}",
                type=str(field["dtype"]),
                entity=", ".join(_ENTITIES.get(str(entity), str(entity)) for entity in call["entities"]),
                owner=str(call.get("owner", "")),
                description=str(field.get("description", "")),
                source=source,
                window=_window(str(field["name"])),
                function=function,
                parameters=parameters,
                services=tuple(sorted(services[name])),
                version=_hash([*definition, str(call.get("ttl", ""))]),
            )


def _declared_entries(view: ViewDeclaration, services: tuple[str, ...]) -> Iterator[FeatureEntry]:
    """The features of a view that a module declares."""
    code = code_hash(view.function)
    for feature in view.features:
        definition = [
            view.name,
            view.entity,
            feature.name,
            feature.type,
            feature.window,
            view.source,
            view.parameters,
            code,
        ]
        yield FeatureEntry(
            name=f"{view.name}.{feature.name}",
            type=feature.type,
            entity=view.entity,
            owner=view.owner,
            description=feature.description,
            source=view.source,
            window=feature.window,
            function=view.function,
            parameters=view.parameters,
            services=services,
            version=_hash(definition),
        )


def _column_entries(columns: ColumnsFile) -> Iterator[FeatureEntry]:
    """People's own columns, as their file declares them."""
    code = code_hash(_COLUMNS)
    for table, found in (("users", columns.users), ("items", columns.items)):
        for column in found.root:
            declaration = column.model_dump(mode="json")
            place = ", ".join(places_of(column)) or " x ".join(declaration["columns"])
            yield FeatureEntry(
                name=f"columns_{table}.{column.name}",
                type=column.kind,
                entity={"users": "user_id", "items": "item_id"}[table],
                owner="you",
                description=f"Your own column: {place}.",
                source=table,
                window="",
                function=_COLUMNS,
                parameters={key: _text(value) for key, value in declaration.items() if key != "name"},
                services=(),
                version=_hash([table, declaration, code]),
            )


def _inputs(view: str, settings: Settings) -> tuple[str, dict[str, str], list[str]]:
    """The tables and settings that a transformation reads, and the functions that prepare its input."""
    node = dict(_definitions(_TRANSFORMATIONS)).get(view)
    if not isinstance(node, ast.FunctionDef):
        raise ConfigurationError(f"feature_repo declares the view {view}, and {_TRANSFORMATIONS} has no such function")
    names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
    sources = [_INPUTS[name] for name in names if name in _INPUTS]
    makers = [f"{_TRANSFORMATIONS}:{maker}" for _, maker in sources if maker]
    read: dict[str, str] = {}
    for function in (f"{_TRANSFORMATIONS}:{view}", *makers):
        module, _, name = function.partition(":")
        for _, _, part in _closure(module, name):
            for found in ast.walk(part):
                if (
                    isinstance(found, ast.Attribute)
                    and isinstance(found.value, ast.Name)
                    and found.value.id in _SETTINGS
                ):
                    section = _SETTINGS[found.value.id]
                    value = getattr(getattr(settings, section), found.attr, None)
                    read[f"{section}.{found.attr}"] = _text(value)
    return ", ".join(dict.fromkeys(table for table, _ in sources)), dict(sorted(read.items())), makers


def _closure(module: str, name: str) -> Iterator[tuple[str, str, ast.AST]]:
    """The definition of a name and of all names of ours that it refers to, each once."""
    waiting, seen = [(module, name)], {(module, name)}
    while waiting:
        where, what = waiting.pop()
        definitions, imports = dict(_definitions(where)), _imports(where)
        node = definitions.get(what)
        if node is None:
            continue
        yield where, what, node
        for found in ast.walk(_bare(node)):
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


def _definitions(module: str) -> Iterator[tuple[str, ast.AST]]:
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        yield name.id, node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node


def _imports(module: str) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    return found


def _bare(node: ast.AST) -> ast.AST:
    """The node without docstrings and annotations of functions, which say nothing of what is computed."""
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


def _calls(path: Path, constructor: str) -> dict[str, dict[str, Any]]:
    """The keyword arguments of each `variable = constructor(…)` at the top of a file, what is no literal as text."""
    found: dict[str, dict[str, Any]] = {}
    for node in ast.parse(path.read_text()).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func) == constructor
        ):
            found[ast.unparse(node.targets[0])] = _keywords(node.value)
    return found


def _keywords(call: ast.Call) -> dict[str, Any]:
    return {keyword.arg: _literal(keyword.value) for keyword in call.keywords if keyword.arg}


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.List):
        return [_literal(part) for part in node.elts]
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "Field":
        return _keywords(node)
    return node.value if isinstance(node, ast.Constant) else ast.unparse(node)


def _window(name: str) -> str:
    found = re.search(r"_(\d+)d$", name)
    return "" if not found else "1 day" if found[1] == "1" else f"{found[1]} days"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]
