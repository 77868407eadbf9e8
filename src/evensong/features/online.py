"""Features now, for serving: users from Feast's online store, items held in this process.

Nothing here goes through Feast's client: the very keys and bytes that Feast writes are read in whole columns
(`online_redis`, `online_sqlite`, `encoding`), so both always agree, and Feast need not even be imported. The items'
table is read from the online store once, kept as an Arrow file that every worker of the machine maps into memory, and
read again when a materialization, or a stream that says so (`items_changed`), has changed what it holds.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from evensong.data import storage
from evensong.features.declarations import RECOMMENDER, SERVING_FILTERS
from evensong.features.encoding import FEW, decode, decode_each, entity_keys, key_prefix, text_keys
from evensong.features.online_redis import RedisOnline
from evensong.features.online_sqlite import SqliteOnline
from evensong.features.shop_columns import active_views
from evensong.features.store import PROJECT, is_redis, redis_connection
from evensong.features.views import declared_views
from evensong.settings import Settings
from evensong.types import Frame

#: Written by the step `materialize` when it ends, and by who wrote items himself; another one means that the items must
#: be read again.
MARKER, ITEMS_MARKER = "materialized.json", "items_changed"
#: So often at most the markers are looked at where a look is a request of its own.
REMOTE_LOOK_SECONDS = 1.0

Features = dict[tuple[str, str], pl.DataType]


class OnlineFeatures:
    """Reads the online store; one row an id asked, in order, nulls when unknown. Threads may share one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._online: RedisOnline | SqliteOnline
        patience = settings.serving.online_store_seconds
        if is_redis(settings.online_store):
            self._online = RedisOnline.connect(redis_connection(settings.online_store), PROJECT, patience)
        else:
            self._online = SqliteOnline(settings.online_store, PROJECT, patience)
        self._lock = threading.Lock()
        self._items: _Items | None = None
        self._looked: tuple[float, str | None] | None = None
        views = declared_views(settings.features)
        # a view that is no longer computed may have left rows, which nobody keeps up
        optional = {name for name, view in views.items() if view.optional}
        self._silent = optional - active_views(settings.features)
        self._users, self._seen, self._item_features = (
            {
                (view.name, feature.name): feature.dtype
                for view in views.values()
                if view.entity == entity and view.service == service
                for feature in view.features
            }
            for entity, service in (("user_id", RECOMMENDER), ("user_id", SERVING_FILTERS), ("item_id", RECOMMENDER))
        )

    def users(self, user_ids: Sequence[str]) -> Frame:
        """`user_id` and the features of the user views."""
        return self._read("user_id", user_ids, self._users)

    def seen(self, user_ids: Sequence[str]) -> Frame:
        """`user_id, seen_item_ids, purchased_item_ids`."""
        return self._read("user_id", user_ids, self._seen)

    def users_and_seen(self, user_ids: Sequence[str]) -> tuple[Frame, Frame]:
        """`users` and `seen` of the same users, read at once: one user is one round trip."""
        both = self._read("user_id", user_ids, self._users | self._seen)
        of_users, of_seen = ([name for _, name in features] for features in (self._users, self._seen))
        return both.select("user_id", *of_users), both.select("user_id", *of_seen)

    def items(self, item_ids: Sequence[str]) -> Frame:
        """`item_id` and the features of the item views, as of the last materialization."""
        return self._current_items().rows(item_ids)

    def items_changed(self) -> None:
        """Say that the store holds other items: every process on this lake reads them again before its next answer.

        For a stream that writes to the online store itself; a materialization needs no such word.
        """
        storage.write_bytes(storage.join(self._settings.lake, ITEMS_MARKER), uuid.uuid4().hex.encode())
        self._looked = None

    def close(self) -> None:
        """Give the connection back."""
        self._online.close()

    def _read(self, entity: str, ids: Sequence[str], features: Features) -> Frame:
        asked = pl.Series(entity, list(ids), dtype=pl.String)
        schema = {entity: pl.String(), **{name: dtype for (_, name), dtype in features.items()}}
        if asked.is_empty():
            return pl.DataFrame(schema=schema)
        few = len(asked) <= FEW
        keys = text_keys(entity, asked.to_list()) if few else entity_keys([asked]).to_pylist()
        wanted = [feature for feature in features if feature[0] not in self._silent]
        found = dict(zip(wanted, self._online.read(keys, wanted), strict=True))
        if few:
            # one frame from rows takes polars a third of the time of a series a feature
            columns = [
                decode_each(found[feature], dtype) if feature in found else [None] * len(asked)
                for feature, dtype in features.items()
            ]
            rows = zip(asked.to_list(), *columns, strict=True)
            return pl.from_dicts([dict(zip(schema, row, strict=True)) for row in rows], schema)
        series = [
            decode(pa.array([value or b"" for value in found[feature]], pa.binary()), dtype).alias(feature[1])
            if feature in found
            else pl.Series(feature[1], [None] * len(asked), dtype)
            for feature, dtype in features.items()
        ]
        return pl.DataFrame([asked, *series])

    def _current_items(self) -> _Items:
        marker = self._marker()
        held = self._items
        if held is not None and held.marker == marker:
            return held
        # who finds another thread reading already answers from what is held, where anything is
        if not self._lock.acquire(blocking=held is None):
            assert held is not None
            return held
        try:
            marker = self._marker()
            if self._items is None or self._items.marker != marker:
                self._items = _Items(marker, self._mapped_items(marker))
            return self._items
        finally:
            self._lock.release()

    def _marker(self) -> str | None:
        """What names the present content of the items' table; None before the first materialization."""
        if not storage.is_remote(self._settings.lake):
            return self._look()
        now = time.monotonic()
        if self._looked is None or now - self._looked[0] >= REMOTE_LOOK_SECONDS:
            self._looked = now, self._look()
        return self._looked[1]

    def _look(self) -> str | None:
        night, said = (storage.join(self._settings.lake, name) for name in (MARKER, ITEMS_MARKER))
        # A rerun of the same night may say the same and have written other values.
        marks = [
            storage.fingerprint(night) if storage.exists(night) else None,
            storage.read_bytes(said).decode() if storage.exists(said) else None,
        ]
        return None if marks == [None, None] else json.dumps(marks)

    def _mapped_items(self, marker: str | None) -> Frame:
        """The items as of the marker from the file that one process of this machine writes and the others map."""
        if marker is None:
            return self._load_items()
        places = json.dumps(
            [marker, self._settings.lake, self._settings.online_store, list(self._item_features), sorted(self._silent)]
        )
        path = Path(self._settings.place("serving", f"items-{hashlib.sha256(places.encode()).hexdigest()[:16]}.arrow"))
        try:
            return _mapped(path)
        except FileNotFoundError:
            pass
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        self._load_items().write_ipc(draft, compression="uncompressed")
        table = _mapped(draft)  # before another process, which goes by another marker, may remove it
        draft.replace(path)
        for old in path.parent.glob("items-*.arrow"):
            if old != path:
                old.unlink(missing_ok=True)  # who has it mapped keeps it until it lets go
        return table

    def _load_items(self) -> Frame:
        """Every item of the online store with its features, by id."""
        prefix = key_prefix(["item_id"]) + struct.pack("<I", 2)  # up to the length of the id, which is text
        keys = self._online.every_key(prefix, list(dict.fromkeys(view for view, _ in self._item_features)))
        ids = [item_id for key in keys.to_pylist() if (item_id := _id_of(key, len(prefix))) is not None]
        return self._read("item_id", ids, self._item_features).sort("item_id")


class _Items:
    """The items' table of one materialization, and where each item stands in it."""

    def __init__(self, marker: str | None, table: Frame) -> None:
        self.marker = marker
        self._table = table
        self._place = {item_id: place for place, item_id in enumerate(table["item_id"].to_list())}

    def rows(self, item_ids: Sequence[str]) -> Frame:
        """One row an id. Neighbours of the table, such as all of it, are a view of the mapped file and no copy."""
        asked = list(item_ids)
        found_at = [self._place.get(item_id) for item_id in asked]
        if found_at and (first := found_at[0]) is not None and found_at == list(range(first, first + len(asked))):
            return self._table.slice(first, len(asked))
        places = pl.Series(found_at, dtype=pl.UInt32)
        found = self._table.drop("item_id")[places]
        return found.insert_column(0, pl.Series("item_id", asked, dtype=pl.String))


def _mapped(path: Path) -> Frame:
    table = pl.from_arrow(pa.ipc.open_file(pa.memory_map(str(path))).read_all())
    assert isinstance(table, pl.DataFrame)
    return table


def _id_of(key: bytes, prefix: int) -> str | None:
    """The id in an entity key; none where more follows: a key of a project whose name ends like this one's."""
    (size,) = struct.unpack_from("<I", key, prefix)
    return key[prefix + 4 :].decode() if len(key) == prefix + 4 + size else None
