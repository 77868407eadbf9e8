"""What the service knows of the last materialization into the online store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evensong.data import storage
from evensong.errors import StorageError
from evensong.features.online import ITEMS_MARKER, MARKER
from evensong.settings import Settings


@dataclasses.dataclass(frozen=True)
class Materialized:
    """One materialization."""

    as_of: datetime
    """The moment of its features (UTC)."""
    token: str
    """Differs whenever something was materialized since, or a stream has said that it wrote items."""
    versions: Mapping[str, int] = dataclasses.field(default_factory=dict, compare=False)
    """The Delta version of each feature table that it read."""
    features: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False)
    """What the store's features were computed by (`dictionary.for_manifest`); none: a release before this one."""


def materialized(settings: Settings) -> Materialized | None:
    """The last one, or none when nothing was materialized yet.

    Raises:
        StorageError, OSError, ValueError: the marker cannot be reached or read.
    """
    uri = storage.join(settings.lake, MARKER)
    if not storage.exists(uri):
        return None
    try:
        marker = storage.read_json(uri)
        as_of = datetime.fromisoformat(marker["as_of"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{uri}: expected an object with `as_of`, found {error}; run `evensong nightly` again"
        ) from error
    # a rerun of the same night may say the same and have written other values
    written = "" if storage.is_remote(uri) else str(Path(uri).stat().st_mtime_ns)
    said = storage.join(settings.lake, ITEMS_MARKER)
    streamed = storage.read_bytes(said).decode() if storage.exists(said) else ""
    return Materialized(as_of, f"{marker} {written} {streamed}", marker.get("versions") or {}, marker.get("features"))
