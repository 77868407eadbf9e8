"""Puts the newest features of each key into Feast's online store."""

from __future__ import annotations

import contextlib
import io
import logging
from datetime import UTC, datetime

from evensong.features.offline_store import scan
from evensong.features.store import open_store
from evensong.settings import Settings

log = logging.getLogger(__name__)
_BEGINNING = datetime(1970, 1, 2, tzinfo=UTC)


def materialize(settings: Settings, as_of: datetime) -> dict[str, int]:
    """Write each key's newest row at `as_of`, of every view; the rows written, a view."""
    store = open_store(settings)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):  # Feast prints its progress; our stdout may be one JSON document
        store.materialize(start_date=_BEGINNING, end_date=as_of)
    log.debug("%s", told.getvalue())
    written = {}
    for view in sorted(store.list_feature_views(), key=lambda view: view.name):
        rows = scan(view.batch_source, None)
        written[view.name] = int(rows.select(view.join_keys).unique().collect().height)
    return written
