"""The register of sources: where the data comes from, how it maps to the lake's tables, and never a secret.

The register is `sources.json` in the lake. A source is one of four kinds: `movielens`, `online-retail`, `events` (any
file or SQL table with a column mapping) and `contract` (a folder whose Parquet files already have the lake's columns).
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from evensong.data import storage, tabular
from evensong.data.batch import Batch
from evensong.data.mapping import EventMapping
from evensong.errors import SourceError
from evensong.types import Value

Kind = Literal["movielens", "online-retail", "events", "contract"]
REGISTER = "sources.json"


class Source(Value):
    """One place that data comes from."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    kind: Kind
    location: str
    """A path, `s3://…`, an SQLAlchemy URL without its password, or `env:NAME` for a URL that NAME holds."""
    mapping: EventMapping | None = None

    @property
    def has_guests(self) -> bool:
        """Whether rows without a user are usual here, and so no sign that the source broke."""
        return self.kind == "online-retail" or (self.mapping is not None and self.mapping.guests)


def register(
    lake_uri: str, kind: Kind, location: str, mapping: EventMapping | None = None, name: str | None = None
) -> Source:
    """Note a source in the lake's register, so that every night reads what is new in it; again is no change.

    Raises:
        SourceError: the name is no name, or the URL carries a secret that cannot be kept out of the register.
    """
    source = describe(lake_uri, kind, location, mapping, name)
    note(lake_uri, source)
    return source


def describe(
    lake_uri: str, kind: Kind, location: str, mapping: EventMapping | None = None, name: str | None = None
) -> Source:
    """The source as `register` would note it: its location absolute and without a password.

    Without a name it gets one from its location, numbered when another location has it already.

    Raises:
        SourceError: the name is no name, or the URL carries a secret that cannot be kept out of the register.
    """
    known = registered(lake_uri)
    place = absolute(location)
    base = name or _name(kind, place, mapping)
    chosen, count = base, 1
    while name is None and chosen in known and known[chosen].location != _stored(place, chosen):
        count += 1
        chosen = f"{base}-{count}"
    try:
        return Source(name=chosen, kind=kind, location=_stored(place, chosen), mapping=_stored_mapping(mapping, chosen))
    except ValidationError as error:
        raise SourceError(f"source name {chosen!r}: expected letters, digits, '.', '_' and '-'") from error


def note(lake_uri: str, source: Source) -> None:
    """Write a described source into the register."""
    known = registered(lake_uri)
    if known.get(source.name) != source:
        known[source.name] = source
        entries = {key: value.model_dump(mode="json", exclude={"name"}) for key, value in known.items()}
        storage.write_json(storage.join(lake_uri, REGISTER), {"sources": entries})


def registered(lake_uri: str) -> dict[str, Source]:
    """Every registered source by name, sorted.

    Raises:
        SourceError: the register was edited into something that cannot be read.
    """
    uri = storage.join(lake_uri, REGISTER)
    if not storage.exists(uri):
        return {}
    try:
        entries: dict[str, dict[str, Any]] = storage.read_json(uri)["sources"]
        return {name: Source(name=name, **entries[name]) for name in sorted(entries)}
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{uri}: expected the register of sources, cannot be read: {error}; correct it") from error


def find(lake_uri: str, name: str) -> list[Source]:
    """The sources that a night's `source` names: one, or every one for `all`.

    Raises:
        SourceError: none of that name, or none at all.
    """
    known = registered(lake_uri)
    if name == "all":
        return list(known.values())
    if name not in known:
        near = difflib.get_close_matches(name, list(known), 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(known) or "none yet; run `evensong import` or `evensong simulate` first"
        raise SourceError(f"no source {name!r}; registered: {listed}{hint}")
    return [known[name]]


def read(source: Source, seen: dict[str, str] | None = None) -> Batch:
    """All that the source holds, in the lake's columns; of a `contract` only the files that changed since `seen`.

    Raises:
        SourceError: it is gone, empty, or not what the mapping says.
    """
    from evensong.data import contract_folder, events, movielens, online_retail

    place = source.location
    if source.kind == "movielens":
        return movielens.read(place)
    if source.kind == "online-retail":
        return online_retail.read(place)
    if source.kind == "contract":
        return contract_folder.read(place, seen or {})
    if source.mapping is None:
        raise SourceError(f"source {source.name}: an events source needs a mapping; import it again")
    return events.read(place, source.mapping)


def fingerprints(source: Source) -> dict[str, str] | None:
    """Each file of the source with a mark that changes when it does; None where only reading can tell, as in SQL.

    Raises:
        SourceError: the source has vanished.
    """
    from evensong.data import contract_folder, movielens, online_retail

    if source.kind == "movielens":
        return movielens.fingerprints(source.location)
    if source.kind == "online-retail":
        return online_retail.fingerprints(source.location)
    if source.kind == "contract":
        return contract_folder.fingerprints(source.location)
    mapping = source.mapping
    places = [source.location, *([mapping.items, mapping.users] if mapping else [])]
    if any(place is not None and tabular.is_sql(place) for place in places):
        return None
    marks: dict[str, str] = {}
    for place in places:
        marks |= tabular.fingerprints(place) if place else {}
    return marks


def absolute(location: str) -> str:
    """The location as it means the same in every process."""
    if storage.is_remote(location) or tabular.is_sql(location):
        return location.rstrip("/")
    return str(Path(location).expanduser().absolute())


def _stored(location: str, name: str) -> str:
    return tabular.without_secret(location, name) if tabular.is_sql(location) else location


def _stored_mapping(mapping: EventMapping | None, name: str) -> EventMapping | None:
    if mapping is None:
        return None
    places = {key: getattr(mapping, key) for key in ("items", "users")}
    found = {key: _stored(absolute(place), name) for key, place in places.items() if place is not None}
    return mapping.model_copy(update=found)


def _name(kind: Kind, location: str, mapping: EventMapping | None) -> str:
    if kind in ("movielens", "online-retail"):
        return kind
    if tabular.is_sql(location) and mapping is not None and mapping.table:
        text = mapping.table
    else:
        text = location.rstrip("/").rpartition("/")[2].partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or kind
