"""The sampled log of requests: what was asked, from which features, answered by which version.

JSON lines below `home/serving/requests`, one file a process and ten minutes, written by the service. A line is a
`Record`; a last line cut by a kill is skipped. `evensong explain` and the skew check read it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson
from pydantic import BaseModel, ConfigDict

from evensong.settings import Settings

log = logging.getLogger(__name__)


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


def folder(settings: Settings) -> Path:
    """Where the log is."""
    return Path(settings.place("serving", "requests"))


def read(settings: Settings) -> Iterator[Record]:
    """Every record, oldest file first; a line that was cut off is skipped."""
    for path in sorted(folder(settings).glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            if (record := _record(line, path)) is not None:
                yield record


def newest(settings: Settings, count: int) -> list[Record]:
    """The last so many records, newest first."""
    found: list[Record] = []
    for path in _newest_first(settings):
        for line in reversed(path.read_bytes().splitlines()):
            if len(found) >= count:
                return found
            if (record := _record(line, path)) is not None:
                found.append(record)
    return found


def is_sampled(request_id: str, share: float) -> bool:
    """Whether a request of that id is in a sample of that share; the same id always falls on the same side."""
    return crc32(request_id.encode()) < share * 2**32


def find(settings: Settings, request_id: str) -> Record | None:
    """The newest record of a request, or none: it was not sampled, or its file has gone."""
    needle = orjson.dumps(request_id)
    for path in _newest_first(settings):
        for line in reversed(path.read_bytes().splitlines()):
            # most lines are ruled out without parsing them
            if needle in line and (record := _record(line, path)) and record.request_id == request_id:
                return record
    return None


def _newest_first(settings: Settings) -> list[Path]:
    """The files by the ten minutes that they are of, the newest first."""
    return sorted(folder(settings).glob("*.jsonl"), reverse=True)


def _record(line: bytes, path: Path) -> Record | None:
    try:
        return Record.model_validate_json(line)
    except ValueError:
        log.warning("%s: skipped a line that is no record", path.name)
        return None
