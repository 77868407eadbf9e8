"""Bringing data in: read a source, and register it so that every night reads what is new in it."""

from __future__ import annotations

from evensong.data import sources
from evensong.data.lake import Lake
from evensong.data.mapping import EventMapping, read_mapping
from evensong.data.sources import Kind
from evensong.pipelines import ingest
from evensong.settings import Settings

__all__ = ["EventMapping", "events", "movielens", "online_retail", "read_mapping", "unknown_event_types"]


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
    `tabular.password_variable(name)`. `env:NAME` stands for a URL that the variable NAME holds.

    Raises:
        SourceError: a file, table, column or value is not what the mapping says.
    """
    return _bring(settings, "events", location, mapping, name)


def unknown_event_types(settings: Settings) -> list[str]:
    """The event types in the raw table that no night lets through, by name."""
    known = {*settings.validation.event_types, *settings.split.positive_event_types}
    raw = Lake(settings.lake).scan("raw_interactions").select("event_type").unique().collect()
    return sorted(set(raw["event_type"].drop_nulls()) - known)


def _bring(
    settings: Settings, kind: Kind, location: str, mapping: EventMapping | None, name: str | None
) -> dict[str, int]:
    source = sources.describe(settings.lake, kind, location, mapping, name)
    asked = source.model_copy(update={"location": sources.absolute(location), "mapping": mapping})
    added = ingest.pull(settings.lake, source, asked)
    sources.note(settings.lake, source)
    return added
