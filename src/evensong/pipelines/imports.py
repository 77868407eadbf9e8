"""Bringing data in: read a source, and register it so that every night reads what is new in it."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import Any

import polars as pl

from evensong.data import sources, sql
from evensong.data.lake import REPEAT, Lake
from evensong.data.mapping import EventMapping, read_mapping
from evensong.data.sources import Kind
from evensong.pipelines import ingest
from evensong.pipelines.validate import REPEATS
from evensong.settings import Settings

log = logging.getLogger(__name__)

#: Past this share of exact repeats an import says what may be behind them.
MANY_REPEATS = 0.1

__all__ = [
    "EventMapping",
    "events",
    "listed",
    "movielens",
    "online_retail",
    "read_mapping",
    "remove",
    "strangers",
    "warnings",
]


def movielens(settings: Settings, path: str, name: str | None = None) -> dict[str, int]:
    """Import a folder of MovieLens 100K or 1M; returns the rows added to each table.

    Raises:
        SourceError: it is no such folder.
    """
    return _bring(settings, "movielens", path, None, name)


def online_retail(settings: Settings, path: str, name: str | None = None) -> dict[str, int]:
    """Import Online Retail (UCI) from Parquet or CSV; returns the rows added to each table.

    Raises:
        SourceError: it is no such file.
    """
    return _bring(settings, "online-retail", path, None, name)


def events(settings: Settings, location: str, mapping: EventMapping, name: str | None = None) -> dict[str, int]:
    """Import any file, folder, `s3://` place or SQL table of events; returns the rows added to each table.

    A password in an SQL URL is used now and never stored: the nights take it from the environment variable
    `sql.password_variable(name)`. `env:NAME` stands for a URL that the variable NAME holds.

    Raises:
        SourceError: a file, table, column or value is not what the mapping says.
    """
    return _bring(settings, "events", location, mapping, name)


def listed(settings: Settings) -> list[dict[str, Any]]:
    """Every registered source: `name`, `kind`, `location`, and what its mapping says beyond the defaults."""
    return [
        {
            "name": source.name,
            "kind": source.kind,
            "location": sql.shown(source.location),
            "mapping": source.mapping.model_dump(mode="json", exclude_defaults=True) if source.mapping else {},
        }
        for source in sources.registered(settings.lake).values()
    ]


def remove(settings: Settings, name: str) -> dict[str, str]:
    """Take a source out of the register; the rows that it brought stay in the lake.

    Raises:
        SourceError: there is none of that name.
    """
    source = sources.remove(settings.lake, name)
    return {"removed": source.name, "location": sql.shown(source.location)}


def strangers(settings: Settings, kind: Kind) -> str | None:
    """A warning where sources of another kind bring their rows into this home too; else None."""
    others = [source.name for source in sources.registered(settings.lake).values() if source.kind != kind]
    if not others:
        return None
    return (
        f"{settings.home} also holds the data of {', '.join(others)}, and its nights learn from all of it together; to "
        "keep the two apart, import into a home of its own: EVENSONG_HOME=./my-shop"
    )


def warnings(settings: Settings) -> list[str]:
    """What the raw table holds that no night will let through, and how to let it."""
    found = []
    known = {*settings.validation.event_types, *settings.split.positive_event_types}
    raw = Lake(settings.lake).scan("raw_interactions")
    types = raw.select("event_type").unique().collect()["event_type"]
    if strange := sorted(set(types.drop_nulls()) - known):
        allowed = json.dumps([*settings.validation.event_types, *strange])
        found.append(
            f"event types that the nights would quarantine: {', '.join(strange)}; allow them with "
            f"EVENSONG_VALIDATION__EVENT_TYPES='{allowed}', and name those that mean that the item was wanted in "
            "EVENSONG_SPLIT__POSITIVE_EVENT_TYPES"
        )
    total, repeats = raw.select(pl.len(), (pl.col(REPEAT) > 0).sum().alias("repeats")).collect().row(0)
    if repeats > MANY_REPEATS * total:
        found.append(
            f"{repeats} of {total} events repeat another one in everything; the nights would quarantine them: {REPEATS}"
        )
    skew = timedelta(seconds=settings.validation.max_clock_skew_seconds)
    early = pl.col("event_timestamp") > pl.col("created_timestamp") + skew
    ahead = raw.filter(early).select("event_timestamp").collect()["event_timestamp"]
    if ahead.len():
        latest = str(ahead.max())[:16]
        found.append(
            f"{ahead.len()} events are dated after they became known, the latest {latest} UTC; the nights would "
            "quarantine them: where times are those of a place, name its zone with --time-zone, such as Europe/Berlin"
        )
    return found


def _bring(
    settings: Settings, kind: Kind, location: str, mapping: EventMapping | None, name: str | None
) -> dict[str, int]:
    source = sources.describe(settings.lake, kind, location, mapping, name)
    asked = source.model_copy(update={"location": sources.absolute(location), "mapping": sources.placed(mapping)})
    known = sources.registered(settings.lake).get(source.name)
    added = ingest.pull(settings.lake, source, asked)
    if known and known.mapping != source.mapping:
        log.warning(
            "source %s has another mapping now; the rows that it brought before stay as they are: where they were "
            "wrong, import all sources into a fresh EVENSONG_HOME",
            source.name,
        )
    sources.note(settings.lake, source)
    return added
