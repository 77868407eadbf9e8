"""Puts the newest features of each key into Feast's online store."""

from __future__ import annotations

import contextlib
import io
import logging
from datetime import UTC, datetime

from evensong.features.store import open_store
from evensong.settings import Settings

log = logging.getLogger(__name__)
_BEGINNING = datetime(1970, 1, 2, tzinfo=UTC)


def materialize(settings: Settings, as_of: datetime) -> dict[str, int]:
    """Write each key's newest row at `as_of` where it is another than the stored one; the keys written, a view."""
    store = open_store(settings)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):  # Feast prints its progress; our stdout may be one JSON document
        store.materialize(start_date=_BEGINNING, end_date=as_of)
    log.debug("%s", told.getvalue())
    written: dict[str, int] = store.provider.batch_engine.written
    return {view: written[view] for view in sorted(written)}
