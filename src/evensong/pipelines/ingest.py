"""The first step of a night: what is new in the registered sources goes into the raw tables, unjudged."""

from __future__ import annotations

from typing import Any

import polars as pl

from evensong.data import batch, sources, storage
from evensong.data.batch import Batch
from evensong.data.lake import RAW, Lake
from evensong.data.sources import Source
from evensong.errors import SourceError
from evensong.pipelines import simulate
from evensong.settings import Settings
from evensong.types import TABLES, Frame, Night


def run(settings: Settings, night: Night) -> dict[str, int]:
    """Read what is new in the night's source, or in all of them; returns the rows added to each table.

    A simulated shop that lives on by itself lives the night's days first. Rows that become known after the night's
    `as_of` come in too: every later step cuts them off itself.

    Raises:
        SourceError: an unknown source, none at all, or one that has vanished or cannot be read.
    """
    simulate.live_on(settings, night)
    chosen = sources.find(settings.lake, night.source)
    if not chosen and Lake(settings.lake).version("raw_interactions") is None:
        raise SourceError("no source is registered; run `evensong import` or `evensong simulate` first")
    added = dict.fromkeys(TABLES, 0)
    for source in chosen:
        try:
            found = pull(settings.lake, source)
        except SourceError as error:
            raise SourceError(
                f"source {source.name}: {error}; if it is gone for good, `evensong import remove {source.name}` (the "
                "rows that it brought stay)"
            ) from error
        for table, count in found.items():
            added[table] += count
    return added


def pull(lake_uri: str, source: Source, asked: Source | None = None) -> dict[str, int]:
    """Bring what is new in one source into the raw tables; returns the rows added to each.

    A source whose files are as they were when it was last read is not read again. What was read is noted after the
    rows are in, so a step that was killed in between reads again and adds nothing twice. `asked` is the same source
    with the passwords that no file may hold.

    Raises:
        SourceError: it has vanished, is empty, or is not what its mapping says.
    """
    marks = sources.fingerprints(asked or source)
    note_uri = sources.note_uri(lake_uri, source.name)
    note: dict[str, Any] = storage.read_json(note_uri) if storage.exists(note_uri) else {}
    shape = source.model_dump(mode="json")
    seen: dict[str, str] = note.get("files", {}) if note.get("source") == shape else {}
    if marks is not None and marks == seen:
        return dict.fromkeys(TABLES, 0)
    added = add(Lake(lake_uri), sources.read(asked or source, seen))
    if marks is not None:
        storage.write_json(note_uri, {"source": shape, "files": marks})
    return added


def add(lake: Lake, found: Batch) -> dict[str, int]:
    """Append what the raw tables do not hold yet; items and users first, so that no event stands without them."""
    items = _about(lake, "items", "item_id", found)
    users = _about(lake, "users", "user_id", found)
    interactions = lake.append_new(RAW + "interactions", found.interactions) if found.interactions.height else 0
    return {"interactions": interactions, "items": items, "users": users}


def _about(lake: Lake, table: str, key: str, found: Batch) -> int:
    """Add items or users: dated rows as they are, first words about unknown ids, and what a catalogue says anew."""
    dated: Frame = getattr(found, table)
    rows = [dated]
    first: Frame = getattr(found, f"first_{table}")
    catalogue: Frame = getattr(found, f"catalogue_{table}")
    if first.height or catalogue.height:
        known = pl.concat([lake.scan(RAW + table).drop("repeat").collect(), dated])
        rows.append(batch.earlier(first, known, key))
        if catalogue.height:
            assert found.moment is not None
            rows.append(batch.restated(catalogue, known, key, found.moment))
    new = pl.concat(rows)
    return lake.append_new(RAW + table, new) if new.height else 0
