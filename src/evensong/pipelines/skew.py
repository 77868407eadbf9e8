"""The step that replays served requests through the offline path and compares every feature and every score.

A request was answered from what the online store had been filled with: the feature tables' versions and the moment
that its record names. Those very versions, read by time travel and joined at that moment by the join that training
uses, must give the same values, and the bundle that answered must give the same scores from them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import polars as pl

from evensong.data import storage
from evensong.errors import EvensongError, StorageError
from evensong.monitoring import request_log
from evensong.monitoring.request_log import Record
from evensong.monitoring.skew import Skew, distance, largest
from evensong.settings import Settings
from evensong.types import TIMESTAMP, Frame, Night

log = logging.getLogger(__name__)

RESULT = "skew.json"
SCORE = "score"
#: When the features of a request were filled in, and from which versions of the tables; equal for a day's requests.
Filled = tuple[datetime, tuple[tuple[str, int], ...]]
Rows = dict[str, dict[str, Any]]


def run(settings: Settings, night: Night) -> str:
    """Write `skew.json` and return its URI; a difference above the tolerance is for the gate to refuse."""
    records = request_log.newest(settings, settings.quality.skew_requests) if settings.quality.skew_requests else []
    records = [record for record in records if record.user_features is not None and record.features_as_of is not None]
    found, notes = compare(settings, records)
    tolerance = settings.quality.skew_tolerance
    above = [skew.name for skew in found if skew.max_difference > tolerance]
    message = _message(found, above, len(records), tolerance)
    # requests of which none can be replayed prove nothing
    success = not above and (bool(found) or not records)
    (log.info if success else log.warning)("skew: %s", message)
    return storage.write_json(
        settings.run_uri(night.run_id, RESULT),
        {
            "success": success,
            "message": message,
            "as_of": night.as_of.isoformat(),
            "num_requests": len(records),
            "num_values": sum(skew.num_values for skew in found),
            "max_difference": max((skew.max_difference for skew in found), default=0.0),
            "tolerance": tolerance,
            "largest": [skew.model_dump(mode="json") for skew in found],
            "notes": notes,
        },
    )


def compare(settings: Settings, records: list[Record]) -> tuple[list[Skew], list[str]]:
    """The largest difference of each feature and of the score, and what could not be compared."""
    pairs: list[tuple[str, str, Any, Any]] = []
    notes: list[str] = []
    fillings = _fillings(settings, records)
    for number, filled in enumerate(fillings):
        mine = [record for record in records if _filled(record) == filled]
        if not mine:
            continue
        try:
            items, users = _offline(settings, filled, mine)
            later = _offline(settings, fillings[number + 1], mine)[1] if number + 1 < len(fillings) else {}
        except StorageError as error:
            notes.append(f"{len(mine)} requests of {filled[0].isoformat()} cannot be replayed: {error}")
            continue
        for record in mine:
            user = users[record.user_id]
            if later and distance(record.user_features or {}, user) > 0:
                # A request that came while the store was being filled may have met the next night's values.
                after = later[record.user_id]
                user = after if distance(record.user_features or {}, after) == 0 else user
            pairs += _features(record, user, items)
        pairs += _scores(settings, mine, users, items, notes)
    return largest(pairs), notes


def _fillings(settings: Settings, records: list[Record]) -> list[Filled]:
    """What the records were answered from, oldest first, and what the store holds now."""
    from evensong.pipelines.features import MATERIALIZED

    found = {_filled(record) for record in records}
    marker = storage.join(settings.lake, MATERIALIZED)
    if storage.exists(marker):
        now = storage.read_json(marker)
        found.add((datetime.fromisoformat(now["as_of"]).astimezone(UTC), _sorted(now.get("versions"))))
    return sorted(found)


def _filled(record: Record) -> Filled:
    assert record.features_as_of is not None
    return datetime.fromisoformat(record.features_as_of).astimezone(UTC), _sorted(record.feature_versions)


def _sorted(versions: Any) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((versions or {}).items()))


def _offline(settings: Settings, filled: Filled, records: list[Record]) -> tuple[Rows, Rows]:
    """The features of the records' items and users as training would have joined them, by id."""
    from evensong.features.offline import FeatureReader
    from evensong.features.shadow import rows_of, shadow, views_of, write_view
    from evensong.features.store import RECOMMENDER
    from evensong.features.views import entity_of, schemas

    moment, versions = filled
    ids = {
        "user_id": sorted({record.user_id for record in records}),
        "item_id": sorted({item for record in records for item in _items_of(record)}),
    }
    with shadow(settings) as copy:
        for view in views_of(copy, RECOMMENDER):
            schema = schemas(settings.features)[view]
            rows = rows_of(settings, view, version=dict(versions).get(view))
            there = rows.collect_schema().names()
            wanted = pl.col(entity_of(view)).is_in(ids[entity_of(view)])
            missing = [pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in there]
            write_view(copy, view, rows.filter(wanted).with_columns(missing).select(list(schema)).collect())
        reader = FeatureReader(copy)
        answers: dict[str, Rows] = {}
        for entity, other in (("user_id", "item_id"), ("item_id", "user_id")):
            asked = pl.DataFrame({entity: ids[entity]}, schema={entity: pl.String}).with_columns(
                pl.lit(None, pl.String).alias(other), pl.lit(moment, TIMESTAMP).alias("event_timestamp")
            )
            joined = reader.join(asked, RECOMMENDER).select(entity, *reader.features_of(RECOMMENDER, entity))
            answers[entity] = {row[entity]: row for row in joined.iter_rows(named=True)}
    return answers["item_id"], answers["user_id"]


def _items_of(record: Record) -> list[str]:
    """The items that decided the answer's scores: those answered, and those of the user's history."""
    history = (record.user_features or {}).get("recent_item_ids") or []
    return [*(item["item_id"] for item in record.items), *history, *record.context.get("recent_item_ids", [])]


def _features(record: Record, user: dict[str, Any], items: Rows) -> Iterator[tuple[str, str, Any, Any]]:
    served = record.user_features or {}
    for name in sorted(served.keys() & user.keys()):
        yield name, record.request_id, served[name], user[name]
    for item in record.items:
        features = item.get("features") or {}
        offline = items[item["item_id"]]
        for name in sorted(features.keys() & offline.keys()):
            yield name, record.request_id, features[name], offline[name]


def _scores(
    settings: Settings, records: list[Record], users: Rows, items: Rows, notes: list[str]
) -> Iterator[tuple[str, str, Any, Any]]:
    """The score of each item that a model answered, and the same model's score from the offline features."""
    from evensong.recommender.funnel import Recommender
    from evensong.registry import bundle

    for version in sorted({record.model_version for record in records}):
        mine = [record for record in records if record.model_version == version and record.source == "model"]
        if not mine:
            continue
        try:
            recommender = Recommender.load(bundle.fetch(settings, version))
        except EvensongError as error:
            notes.append(f"{len(mine)} requests of version {version} keep their scores unchecked: {error}")
            continue
        table = recommender.prepare_items(_frame(settings, items))
        num_lost = 0
        for record in mine:
            again = _replayed(settings, recommender, table, record, users[record.user_id])
            for item in record.items:
                if item["source"] != "model":
                    continue
                if item["item_id"] in again:
                    yield SCORE, record.request_id, item["score"], again[item["item_id"]]
                else:
                    num_lost += 1
        if num_lost:
            notes.append(f"version {version}: {num_lost} answered items are no candidates of the replay")


def _replayed(
    settings: Settings, recommender: Any, table: Any, record: Record, user: dict[str, Any]
) -> dict[str, float]:
    """The scores of all candidates of the request; so many that what was hidden then does not push one out."""
    from evensong.recommender.session import continued

    frame = continued(_user_frame(settings, user), record.context.get("recent_item_ids", []))
    wanted = settings.retriever.num_candidates + settings.retriever.num_popular_candidates + record.num_hidden
    rows = recommender.recommend(frame, table, now=record.at, k=max(wanted, record.k))
    return dict(rows.select("item_id", "score").iter_rows())


def _user_frame(settings: Settings, row: dict[str, Any]) -> Frame:
    from evensong.features.views import declared_views, features_of

    schema = {"user_id": pl.String(), **features_of(declared_views(settings.features).values(), "user_id")}
    return pl.DataFrame([{name: row.get(name) for name in schema}], schema=schema)


def _frame(settings: Settings, items: Rows) -> Frame:
    from evensong.features.views import declared_views, features_of

    schema = {"item_id": pl.String(), **features_of(declared_views(settings.features).values(), "item_id")}
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in items.values()], schema=schema)


def _message(found: list[Skew], above: list[str], num_requests: int, tolerance: float) -> str:
    if not num_requests:
        return "no request was logged with its features yet, so nothing can differ"
    values = sum(skew.num_values for skew in found)
    if not found:
        return f"none of {num_requests} requests could be replayed; the notes say why"
    # what a score was made from tells more than the score
    worst = next((skew for skew in found if skew.name in above and skew.name != SCORE), found[0])
    if not above:
        return (
            f"{values:,} values of {num_requests} requests: served and offline differ by {worst.max_difference:.3g} "
            f"at most ({worst.name}), allowed {tolerance:g}"
        )
    return (
        f"{', '.join(above[:5])} served otherwise than offline: {worst.name} differs by {worst.max_difference:.3g} "
        f"(request {worst.request_id}: served {worst.served}, offline {worst.offline}), allowed {tolerance:g}"
    )
