"""What the service knows of the last materialization into the online store."""

from __future__ import annotations

import dataclasses
from datetime import datetime

from evensong.data import storage
from evensong.errors import StorageError
from evensong.settings import Settings


@dataclasses.dataclass(frozen=True)
class Materialized:
    """One materialization."""

    as_of: datetime
    """The moment of its features (UTC)."""
    token: str
    """Differs whenever something was written since."""


def materialized(settings: Settings) -> Materialized | None:
    """The last one, or none when nothing was materialized yet or its marker cannot be reached."""
    try:
        marker = storage.read_json(storage.join(settings.lake, "features", "materialized.json"))
    except StorageError:
        return None
    return Materialized(datetime.fromisoformat(marker["as_of"]), str(marker))
