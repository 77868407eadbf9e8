"""The steps that compute the night's features and put the newest of them in front of the service."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.settings import Settings
from evensong.types import Night

log = logging.getLogger(__name__)

#: States what the online store holds: the newest `as_of`, the feature tables' versions, the features' definitions.
#: The service watches it.
MATERIALIZED = "materialized.json"
#: Earlier fillings that it remembers.
KEPT = 30


def build(settings: Settings, night: Night) -> dict[str, int]:
    """Bring the feature tables up to the night's `as_of`; the Delta version of each."""
    from evensong.features.refresh import refresh

    return refresh(settings, night.as_of)


def materialize(settings: Settings, night: Night) -> dict[str, int]:
    """Put the newest features known at the night's `as_of` into the online store; the rows written, a view.

    A night older than the newest one materialized writes nothing: its features would replace newer ones.

    Raises:
        StaleFeaturesError: the feature tables do not reach `as_of`.
    """
    from evensong.features.dictionary import build_dictionary, for_manifest
    from evensong.features.materialize import materialize as write
    from evensong.features.refresh import require
    from evensong.features.store import RECOMMENDER
    from evensong.features.views import declared_views

    marker = storage.join(settings.lake, MATERIALIZED)
    newest = materialized_at(settings)
    if newest is not None and newest > night.as_of:
        log.info("materialize: the online store holds %s already, newer than %s; nothing to do", newest, night.as_of)
        return {}
    require(settings, night.as_of)
    served = for_manifest(build_dictionary(settings), RECOMMENDER)
    if newest is not None:
        before = storage.read_json(marker)
        if before.get("features") != served:
            # rows of other definitions are about to come in one by one: no model of before may read them
            storage.write_json(marker, before | {"features": served})
    written = write(settings, night.as_of)
    lake = Lake(settings.lake)
    said = {
        "as_of": night.as_of.isoformat(),
        "rows": written,
        "versions": {view: lake.version(f"features/{view}") for view in declared_views(settings.features)},
        "features": served,
    }
    storage.write_json(marker, said | {"before": _before(marker, said)})
    return written


def _before(marker: str, said: dict[str, Any]) -> list[dict[str, Any]]:
    """The fillings before this one, newest first: a request may have met a part of any of them."""
    if not storage.exists(marker):
        return []
    last = storage.read_json(marker)
    known = [{name: last.get(name) for name in ("as_of", "versions")}, *last.get("before", [])]
    return [one for one in known if one != {name: said[name] for name in one}][:KEPT]


def materialized_at(settings: Settings) -> datetime | None:
    """The newest `as_of` whose features the online store holds; None before the first."""
    marker = storage.join(settings.lake, MATERIALIZED)
    if not storage.exists(marker):
        return None
    return datetime.fromisoformat(storage.read_json(marker)["as_of"]).astimezone(UTC)
