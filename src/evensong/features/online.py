"""Features now, for serving: what was materialized last, read from Feast's online store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from evensong.features.store import open_store
from evensong.features.transformations import (
    ITEM_CONTENT,
    ITEM_POPULARITY,
    STAMPS,
    USER_ACTIVITY,
    USER_HISTORY,
    USER_SEEN,
)
from evensong.settings import Settings
from evensong.types import Frame

VIEWS = {
    "user_history": USER_HISTORY,
    "user_activity": USER_ACTIVITY,
    "item_popularity": ITEM_POPULARITY,
    "item_content": ITEM_CONTENT,
    "user_seen": USER_SEEN,
}


class OnlineFeatures:
    """Reads the online store; one row an id asked, in order, nulls when unknown."""

    def __init__(self, settings: Settings) -> None:
        self._store = open_store(settings)

    def users(self, user_ids: Sequence[str]) -> Frame:
        """`user_id` and the features of the user views."""
        return self._read("user_id", user_ids, ["user_history", "user_activity"])

    def items(self, item_ids: Sequence[str]) -> Frame:
        """`item_id` and the features of the item views."""
        return self._read("item_id", item_ids, ["item_popularity", "item_content"])

    def seen(self, user_ids: Sequence[str]) -> Frame:
        """`user_id, seen_item_ids, purchased_item_ids`."""
        return self._read("user_id", user_ids, ["user_seen"])

    def _read(self, key: str, ids: Sequence[str], views: Sequence[str]) -> Frame:
        schema: dict[str, Any] = {key: pl.String()}
        refs = []
        for view in views:
            for name, dtype in VIEWS[view].items():
                if name != key and name not in STAMPS:
                    schema[name] = dtype
                    refs.append(f"{view}:{name}")
        if not ids:
            return pl.DataFrame(schema=schema)
        found = self._store.get_online_features(features=refs, entity_rows=[{key: name} for name in ids]).to_dict()
        return pl.DataFrame({name: found[name] for name in schema}, schema=schema, strict=False)
