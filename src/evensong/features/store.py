"""Feast's feature store for our settings: one a process, with the declarations of `feature_repo/` applied."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from evensong.data import storage
from evensong.errors import ConfigurationError
from evensong.features.declarations import RECOMMENDER as RECOMMENDER
from evensong.features.declarations import SERVING_FILTERS as SERVING_FILTERS
from evensong.features.views import declared_views
from evensong.settings import Settings, load_settings

if TYPE_CHECKING:
    from feast import FeatureStore

PROJECT = "evensong"
OFFLINE_STORE = "evensong.features.offline_store.PolarsOfflineStore"
ENGINE = "evensong.features.materialization_engine.PolarsEngine"

#: The modules of `feature_repo/`, in the order in which they import each other.
MODULES = ("entities", "sources", "feature_views", "feature_services")
#: The tag on a feature service that says which declarations it was applied from.
DECLARATIONS = "declarations"

_lock = threading.RLock()
_stores: dict[tuple[str, ...], FeatureStore] = {}
_declaring: ContextVar[Settings | None] = ContextVar("declaring", default=None)


def open_store(settings: Settings) -> FeatureStore:
    """The feature store for these settings; the first call applies the declarations when the registry has others."""
    place = _place(settings)
    with _lock:
        if place not in _stores or _is_gone(settings.feast_registry):
            _stores[place] = _open(settings)
        return _stores[place]


def close_store(settings: Settings) -> None:
    """Forget the store of these settings, so that a place that is about to go leaves nothing behind."""
    with _lock:
        _stores.pop(_place(settings), None)


def declaring() -> Settings:
    """The settings that `feature_repo/` declares for: of the store that is being opened, or, on Feast's own command
    line, those that `load_settings` reads.
    """
    return _declaring.get() or load_settings()


def _place(settings: Settings) -> tuple[str, ...]:
    return (settings.lake, settings.online_store, settings.feast_registry, _declarations(settings))


def _is_gone(registry: str) -> bool:
    """Whether somebody removed the registry's file since it was opened, as a second `evensong reproduce` does."""
    return not storage.is_remote(registry) and "://" not in registry and not Path(registry).exists()


def repository() -> Path:
    """The folder `feature_repo/`: beside `src/` in a checkout, or in the working folder, as in a container.

    Raises:
        ConfigurationError: neither place has it.
    """
    places = [Path(__file__).resolve().parents[3] / "feature_repo", Path.cwd() / "feature_repo"]
    for place in places:
        if (place / "feature_store.yaml").is_file():
            return place
    raise ConfigurationError(
        f"expected feature_repo/feature_store.yaml in {places[0].parent} or {places[1].parent}, found it in neither; "
        "run from the project's folder"
    )


def feature_table_uri(settings: Settings, view: str) -> str:
    """The Delta table of a feature view."""
    return storage.join(settings.lake, "features", view)


def redis_connection(uri: str) -> str:
    """Feast's connection string for `redis://[user:password@]host[:port][/db]` (`rediss://` with TLS)."""
    parts = urlsplit(uri)
    options = {"db": parts.path.strip("/") or "0"}
    if parts.username:
        options["username"] = unquote(parts.username)
    if parts.password:
        options["password"] = unquote(parts.password)
    if parts.scheme == "rediss":
        options["ssl"] = "true"
    options |= dict(parse_qsl(parts.query))
    return ",".join([f"{parts.hostname}:{parts.port or 6379}", *(f"{name}={value}" for name, value in options.items())])


def is_redis(uri: str) -> bool:
    """Whether the online store is a Redis; a SQLite file otherwise."""
    return uri.startswith(("redis://", "rediss://"))


def _open(settings: Settings) -> FeatureStore:
    os.environ.setdefault("FEAST_USAGE", "False")
    with warnings.catch_warnings():
        # Feast's modules warn about each other's deprecations when they are imported.
        warnings.simplefilter("ignore")
        with _light():
            from feast import FeatureStore

            import evensong.features.materialization_engine
            import evensong.features.offline_store  # noqa: F401
        store = FeatureStore(config=_config(settings))
        _apply(store, settings)
    return store


@contextmanager
def _light() -> Iterator[None]:
    """Feast without what takes more than half of its import: each step that reads features imports Feast anew.

    That is run-time type checks, for which typeguard would rewrite the source of its classes, and torch, which only its
    `to_tensor` needs.
    """
    import typeguard

    def as_it_is(target: Any = None, **options: Any) -> Any:
        return target if target is not None else as_it_is

    checked = typeguard.typechecked
    typeguard.typechecked = as_it_is
    without_torch = "torch" not in sys.modules
    if without_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]  # what Python takes for a package that is not there
    try:
        yield
    finally:
        typeguard.typechecked = checked
        if without_torch:
            del sys.modules["torch"]


def _config(settings: Settings) -> Any:
    from feast import RepoConfig

    online: dict[str, Any]
    if is_redis(settings.online_store):
        online = {"type": "redis", "connection_string": redis_connection(settings.online_store)}
    else:
        Path(settings.online_store).parent.mkdir(parents=True, exist_ok=True)
        online = {"type": "sqlite", "path": str(Path(settings.online_store).resolve())}
    return RepoConfig(
        project=PROJECT,
        provider="local",
        registry=_registry(settings.feast_registry),
        offline_store={"type": OFFLINE_STORE, "monitoring": storage.join(settings.lake, "features", "monitoring")},
        online_store=online,
        entity_key_serialization_version=3,
        batch_engine={"type": ENGINE, "snapshots": storage.join(settings.lake, "features", "materialized")},
        materialization={"pull_latest_features": True},
        repo_path=repository(),
    )


def _registry(uri: str) -> dict[str, Any]:
    scheme = uri.split("://", 1)[0].split("+", 1)[0] if "://" in uri else ""
    if scheme in {"postgresql", "mysql", "sqlite"}:
        if uri.startswith("postgresql://"):
            uri = uri.replace("postgresql://", "postgresql+psycopg://", 1)
        # A materialization in another process must not make this one refuse to serve.
        return {"registry_type": "sql", "path": uri, "serve_features_while_materializing": True}
    if not storage.is_remote(uri):
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
    return {"registry_type": "file", "path": uri}


def _apply(store: FeatureStore, settings: Settings) -> None:
    """Put the declarations into the registry, unless it was filled from the very same."""
    from feast import Entity, FeatureService, FeatureView
    from feast.errors import FeatureServiceNotFoundException

    wanted = _declarations(settings)
    try:
        names = (RECOMMENDER, SERVING_FILTERS)
        if all(store.get_feature_service(name).tags.get(DECLARATIONS) == wanted for name in names):
            return
    except FeatureServiceNotFoundException:
        pass
    found = _load(settings)
    views = [value for value in found if isinstance(value, FeatureView)]
    services = [value for value in found if isinstance(value, FeatureService)]
    for service in services:
        service.tags = {**service.tags, DECLARATIONS: wanted}
    entities = [value for value in found if isinstance(value, Entity)]
    store.apply([*entities, *(view.batch_source for view in views), *views, *services])
    # a statistic that is declared no more leaves a view that no service knows
    for name in {view.name for view in store.list_feature_views()} - {view.name for view in views}:
        store.delete_feature_view(name)


def _declarations(settings: Settings) -> str:
    """A mark of everything that is declared under these settings, and of where its tables are."""
    views = [
        [view.name, view.entity, view.service, view.owner, view.description, view.ttl.total_seconds()]
        + [[feature.name, str(feature.dtype), feature.description] for feature in view.features]
        for view in declared_views(settings.features).values()
    ]
    digest = hashlib.sha256(json.dumps([settings.lake, views]).encode())
    for module in MODULES:
        digest.update((repository() / f"{module}.py").read_bytes())
    return digest.hexdigest()


def _load(settings: Settings) -> list[Any]:
    """The objects that the modules of the repository declare for these settings, each once."""
    found: dict[int, Any] = {}
    token = _declaring.set(settings)
    try:
        with _importable(repository()):
            for module in MODULES:
                for value in vars(importlib.import_module(module)).values():
                    found[id(value)] = value
    finally:
        _declaring.reset(token)
    return list(found.values())


@contextmanager
def _importable(repo: Path) -> Iterator[None]:
    """Lets the repository's modules import each other by bare names, as Feast's command line does, and no longer."""
    held = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(repo))
    try:
        yield
    finally:
        sys.path.remove(str(repo))
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(held)
