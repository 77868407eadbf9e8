"""The sampled log of requests: what was asked, from which features, answered by which version.

JSON lines below `serving.request_log_uri` (without it, `home/serving/requests`), files of a process and ten minutes,
written by the service. A line is a `Record`; a last line cut by a kill is skipped. `evensong explain` and the skew
check read it. The files hold what users did, so they go when they are `serving.request_log_days` old, the oldest first
when they are more than `serving.request_log_megabytes`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

import orjson
from pydantic import BaseModel, ConfigDict

from evensong.data import storage
from evensong.errors import StorageError
from evensong.settings import Settings

log = logging.getLogger(__name__)


#: How a file's name begins: the ten minutes that it is of.
_MINUTE, _MINUTE_FORMAT = "2026-01-15T0000", "%Y-%m-%dT%H%M"


class Record(BaseModel):
    """One logged request; with the bundle of its version it holds everything that decided the answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request_id: str
    at: datetime
    """The `now` that the funnel was given (UTC)."""
    user_id: str
    k: int
    filter: str
    exclude_item_ids: list[str]
    """What the caller asked to leave out."""
    num_hidden: int
    """How many items the filter rule and the caller hid together."""
    context: dict[str, Any]
    model_name: str
    model_version: str
    source: str
    reason: str | None
    features_as_of: str | None
    """The moment of the features in the online store, as its marker says."""
    feature_versions: dict[str, int] | None = None
    """The Delta version of each feature table that the online store was filled from."""
    user_features: dict[str, Any] | None
    """As read from the online store; none when it could not be read."""
    items: list[dict[str, Any]]
    """`rank, item_id, score, source` of each item answered; `features` is its item features as the funnel had them."""


def place(settings: Settings) -> str:
    """Where the log is: a folder, or a prefix of an object store."""
    return settings.serving.request_log_uri or settings.place("serving", "requests")


def read(settings: Settings) -> Iterator[Record]:
    """Every record, oldest file first; a line that was cut off is skipped."""
    for uri in reversed(_newest_first(settings)):
        yield from _records(_lines(uri), uri)


def newest(settings: Settings, count: int) -> list[Record]:
    """The last so many records, newest first."""
    found: list[Record] = []
    for uri in _newest_first(settings):
        if len(found) >= count:
            break
        found.extend(_records(reversed(_lines(uri)), uri))
    # files of several processes overlap
    return sorted(found, key=lambda record: record.at, reverse=True)[:count]


def clear_out(settings: Settings) -> list[str]:
    """Remove the files that are too old, and the oldest while there is too much; what was removed."""
    kept, gone = 0, []
    first = datetime.now(UTC) - timedelta(days=settings.serving.request_log_days)
    most = settings.serving.request_log_megabytes * 1024 * 1024
    sizes = storage.sizes(place(settings))
    for number, uri in enumerate(sorted(filter(_is_log, sizes), key=_name, reverse=True)):
        kept += sizes[uri]
        is_old = _name(uri)[: len(_MINUTE)] < first.strftime(_MINUTE_FORMAT)
        # the newest file may be one that is being written
        if is_old or (number and kept > most):
            storage.remove(uri)
            gone.append(uri)
    return gone


def is_sampled(request_id: str, share: float) -> bool:
    """Whether a request of that id is in a sample of that share; the same id always falls on the same side."""
    return crc32(request_id.encode()) < share * 2**32


def find(settings: Settings, request_id: str) -> Record | None:
    """The newest record of a request, or none: it was not sampled, or its file has gone."""
    needle = orjson.dumps(request_id)
    for uri in _newest_first(settings):
        # most lines are ruled out without parsing them
        lines = [line for line in _lines(uri) if needle in line]
        for record in _records(reversed(lines), uri):
            if record.request_id == request_id:
                return record
    return None


def _newest_first(settings: Settings) -> list[str]:
    """The files by the ten minutes that they are of, the newest first."""
    return sorted(filter(_is_log, storage.list_files(place(settings))), key=_name, reverse=True)


def _is_log(uri: str) -> bool:
    return uri.endswith(".jsonl")


def _name(uri: str) -> str:
    return uri.rpartition("/")[2]


def _lines(uri: str) -> list[bytes]:
    try:
        return storage.read_bytes(uri).splitlines()
    except StorageError:
        if storage.exists(uri):
            raise
        return []  # it has just been removed for its age


def _records(lines: Iterable[bytes], uri: str) -> Iterator[Record]:
    for line in lines:
        try:
            yield Record.model_validate_json(line)
        except ValueError:
            log.warning("%s: skipped a line that is no record", _name(uri))
