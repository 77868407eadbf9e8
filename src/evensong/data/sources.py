"""The register of sources: where the data comes from, how it maps to the lake's tables, and never a secret.

The register is the folder `sources/` in the lake, one JSON file a source, so that two imports at once cannot overwrite
one another's. A source is one of four kinds: `movielens`, `online-retail`, `events` (any file or SQL table with a
column mapping) and `contract` (a folder whose Parquet files already have the lake's columns).
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError

from evensong.data import sql, storage, tabular
from evensong.data.batch import Batch
from evensong.data.mapping import EventMapping
from evensong.errors import SourceError, StorageError
from evensong.types import Value

Kind = Literal["movielens", "online-retail", "events", "contract"]
#: What a night calls all of them.
EVERY = "all"
REGISTER = "sources"
#: Where all of them stood together until there was a file for each; read as well, and parted by the next change.
TOGETHER = "sources.json"


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
        SourceError: the name is no name or another place's, nothing reads the location, or the URL carries a secret
            that cannot be kept out of the register.
    """
    known = registered(lake_uri)
    place = absolute(location)
    if kind != "events" and sql.is_sql(place):
        raise SourceError(f"{sql.shown(place)}: expected a path or s3://bucket/prefix for {kind}; copy it there first")

    def named(chosen: str) -> Source:
        if chosen == EVERY:
            raise SourceError(f"source name {EVERY!r}: it means every source; choose another --name")
        try:
            return Source(
                name=chosen, kind=kind, location=_stored(place, chosen), mapping=_stored_mapping(mapping, chosen)
            )
        except ValidationError as error:
            raise SourceError(f"source name {chosen!r}: expected letters, digits, '.', '_' and '-'") from error

    base = name or _name(kind, place, mapping)
    source, count = named(base), 1
    while source.name in known and _place(known[source.name]) != _place(source):
        if name is not None:
            raise _taken(known[name], source)
        count += 1
        source = named(f"{base}-{count}")
    return source


def note(lake_uri: str, source: Source) -> None:
    """Write a described source into the register.

    Raises:
        SourceError: another import has given the name to another place meanwhile.
    """
    _part(lake_uri)
    uri = _entry(lake_uri, source.name)
    with suppress(StorageError):
        storage.create_bytes(uri, _content(source))
        return
    known = _read(uri, source.name)
    if _place(known) != _place(source):
        raise _taken(known, source)
    if known != source:
        storage.write_bytes(uri, _content(source))


def remove(lake_uri: str, name: str) -> Source:
    """Take a source out of the register, so that no night reads it any more; the rows that it brought stay.

    Raises:
        SourceError: there is none of that name.
    """
    if name == EVERY:
        raise SourceError(f"{EVERY!r} means every source; remove one at a time, `evensong import list` shows them")
    [source] = find(lake_uri, name)
    _part(lake_uri)
    storage.remove(_entry(lake_uri, name))
    storage.remove(note_uri(lake_uri, name))
    return source


def note_uri(lake_uri: str, name: str) -> str:
    """Where ingest keeps what it has read of a source."""
    return storage.join(lake_uri, "ingested", f"{name}.json")


def registered(lake_uri: str) -> dict[str, Source]:
    """Every registered source by name, sorted.

    Raises:
        SourceError: the register was edited into something that cannot be read.
    """
    found = _together(lake_uri)
    for uri in storage.list_files(storage.join(lake_uri, REGISTER)):
        name = uri.rpartition("/")[2]
        if name.endswith(".json") and not name.startswith("."):
            source = _read(uri, name.removesuffix(".json"))
            found[source.name] = source
    return {name: found[name] for name in sorted(found)}


def _entry(lake_uri: str, name: str) -> str:
    return storage.join(lake_uri, REGISTER, f"{name}.json")


def _content(source: Source) -> bytes:
    return source.model_dump_json(exclude={"name"}, indent=2).encode()


def _read(uri: str, name: str) -> Source:
    try:
        return Source(name=name, **storage.read_json(uri))
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{uri}: expected the register of sources, cannot be read: {error}; correct it") from error


def _together(lake_uri: str) -> dict[str, Source]:
    uri = storage.join(lake_uri, TOGETHER)
    if not storage.exists(uri):
        return {}
    try:
        entries: dict[str, dict[str, Any]] = storage.read_json(uri)["sources"]
        return {name: Source(name=name, **entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{uri}: expected the register of sources, cannot be read: {error}; correct it") from error


def _part(lake_uri: str) -> None:
    """Give each source of a register of before its own file."""
    for source in _together(lake_uri).values():
        with suppress(StorageError):
            storage.create_bytes(_entry(lake_uri, source.name), _content(source))
    storage.remove(storage.join(lake_uri, TOGETHER))


def _place(source: Source) -> tuple[str, str, str | None]:
    """What makes a source that very source: the rest of its mapping may change."""
    return source.kind, source.location, source.mapping.table if source.mapping else None


def _taken(known: Source, asked: Source) -> SourceError:
    def told(source: Source) -> str:
        table = f" table {source.mapping.table}" if source.mapping and source.mapping.table else ""
        return f"{source.kind} {sql.shown(source.location)}{table}"

    return SourceError(
        f"source {known.name!r} is {told(known)}, asked for {told(asked)}; give this one another --name, or "
        f"`evensong import remove {known.name}` first (the rows that it brought stay)"
    )


def find(lake_uri: str, name: str) -> list[Source]:
    """The sources that a night's `source` names: one, or every one for `all`.

    Raises:
        SourceError: none of that name, or none at all.
    """
    known = registered(lake_uri)
    if name == EVERY:
        return list(known.values())
    if name not in known:
        near = difflib.get_close_matches(name, list(known), 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(known) or "none yet; run `evensong import` or `evensong simulate` first"
        raise SourceError(f"no source {name!r}; registered: {listed}{hint}")
    return [known[name]]


def read(source: Source, seen: dict[str, str] | None = None, now: datetime | None = None) -> Batch:
    """All that the source holds, in the lake's columns; of a `contract` only the files that changed since `seen`.

    `now` is the moment of the import: what is dated after it and does not say when it became known did so then.

    Raises:
        SourceError: it is gone, empty, or not what the mapping says.
    """
    from evensong.data import contract_folder, events, movielens, online_retail

    place, now = source.location, now or datetime.now(UTC)
    if source.kind == "movielens":
        return movielens.read(place, now)
    if source.kind == "online-retail":
        return online_retail.read(place, now)
    if source.kind == "contract":
        return contract_folder.read(place, seen or {}, now)
    if source.mapping is None:
        raise SourceError(f"source {source.name}: an events source needs a mapping; import it again")
    return events.read(place, source.mapping, now)


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
    if any(place is not None and sql.is_sql(place) for place in places):
        return None
    marks: dict[str, str] = {}
    for place in places:
        marks |= tabular.fingerprints(place) if place else {}
    return marks


def absolute(location: str) -> str:
    """The location as it means the same in every process.

    Raises:
        SourceError: it is a URL that nothing here reads.
    """
    if location.startswith("file://"):
        location = unquote(urlsplit(location).path)
    if storage.is_remote(location):
        return location.rstrip("/")
    if sql.is_sql(location):
        return sql.absolute(location)
    return str(Path(location).expanduser().absolute())


def placed(mapping: EventMapping | None) -> EventMapping | None:
    """The mapping with its items and users as `absolute` gives them."""
    if mapping is None:
        return None
    places = {key: getattr(mapping, key) for key in ("items", "users")}
    return mapping.model_copy(update={key: absolute(place) for key, place in places.items() if place is not None})


def _stored(location: str, name: str) -> str:
    return sql.without_secret(location, name) if sql.is_sql(location) else location


def _stored_mapping(mapping: EventMapping | None, name: str) -> EventMapping | None:
    found = placed(mapping)
    if found is None:
        return None
    places = {key: getattr(found, key) for key in ("items", "users")}
    return found.model_copy(update={key: _stored(place, name) for key, place in places.items() if place is not None})


def _name(kind: Kind, location: str, mapping: EventMapping | None) -> str:
    if kind in ("movielens", "online-retail"):
        return kind
    if sql.is_sql(location) and mapping is not None and mapping.table:
        text = mapping.table
    else:
        text = location.rstrip("/").rpartition("/")[2].partition(".")[0]
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()  # é is e
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-._")
    return name if name not in ("", EVERY) else f"{kind}-{name}".rstrip("-")
