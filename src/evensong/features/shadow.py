"""A lake and a feature store of their own in a temporary folder, for checks that must not touch the real ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.features.store import close_store, feature_table_uri, open_store
from evensong.features.views import schemas
from evensong.settings import Settings
from evensong.types import Frame


@contextmanager
def shadow(settings: Settings) -> Iterator[Settings]:
    """The settings with every place in a temporary folder that goes at the end."""
    with tempfile.TemporaryDirectory(prefix="evensong-shadow-") as folder:
        place = Path(folder)
        copy = settings.model_copy(
            update={
                "home": place,
                "lake_uri": str(place / "lake"),
                "artifacts_uri": str(place / "artifacts"),
                "online_store_uri": str(place / "online.db"),
                "feast_registry_uri": str(place / "registry.db"),
            }
        )
        try:
            yield copy
        finally:
            close_store(copy)


def rows_of(settings: Settings, view: str, *, version: int | None = None) -> pl.LazyFrame:
    """The rows of a feature table, of an earlier commit with `version`."""
    return Lake(settings.lake).scan(f"features/{view}", version=version)


def write_view(settings: Settings, view: str, rows: Frame) -> None:
    """Write a feature table whole, in the order of the rows."""
    from deltalake import write_deltalake

    schema = schemas(settings.features)[view]
    uri = feature_table_uri(settings, view)
    table = rows.select(list(schema)).cast(pl.Schema(schema))
    write_deltalake(uri, table, mode="overwrite", storage_options=storage.storage_options(uri) or None)


def views_of(settings: Settings, service: str) -> dict[str, timedelta | None]:
    """The service's views, each with the greatest age of a row that it still shows; None: any age."""
    store = open_store(settings)
    views = [
        store.get_feature_view(projection.name)
        for projection in store.get_feature_service(service).feature_view_projections
    ]
    return {view.name: view.ttl or None for view in views}


def limit_age(settings: Settings, service: str, ttl: timedelta) -> None:
    """Give every view of the service this time to live, in this store alone."""
    store = open_store(settings)
    changed: list[Any] = []
    for name in views_of(settings, service):
        view = store.get_feature_view(name)
        view.ttl = ttl
        changed.append(view)
    store.apply(changed)
