"""The step that replays served requests through the offline path and compares every feature and every score.

A request was answered from what the online store had been filled with: the feature tables' versions and the moment
that its record names. Those very versions, read by time travel and joined at that moment by the join that training
uses, must give the same values, and the bundle that answered must give the same scores from them. Which features these
are, the bundle's manifest says, so one that is missing on a side is a difference too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import TYPE_CHECKING, Any

import polars as pl

from evensong.data import storage
from evensong.errors import EvensongError
from evensong.monitoring import request_log
from evensong.monitoring.request_log import Record
from evensong.monitoring.skew import ABSENT, difference, distance, largest
from evensong.settings import Settings
from evensong.types import TIMESTAMP, Frame, Night, Skew

if TYPE_CHECKING:
    from evensong.recommender.funnel import ItemTable, Recommender

log = logging.getLogger(__name__)

RESULT = "skew.json"
SCORE, HIDDEN = "score", "num_hidden"
#: Further fillings of the store whose values a request may have met already: the store is filled view by view.
LATER = 2
#: So many more candidates are asked for than were served, since two machines round the last one's score otherwise.
MORE = 50
#: When the features of a request were filled in, and from which versions of the tables; equal for a day's requests.
Filled = tuple[datetime, tuple[tuple[str, int], ...]]
Row = Mapping[str, Any]
Rows = dict[str, dict[str, Any]]
#: Name, request, served, offline.
Pair = tuple[str, str, Any, Any]


@dataclass
class Comparison:
    """What was compared, and what was not."""

    pairs: list[Pair] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be compared, for a reason that is no fault."""
    failures: list[str] = field(default_factory=list)
    """What should have been there to compare."""

    @property
    def found(self) -> list[Skew]:
        """The largest difference of each feature and of the score, the largest of all first."""
        return largest(self.pairs)


def run(settings: Settings, night: Night) -> str:
    """Write `skew.json` and return its URI; a difference above the tolerance is for the gate to refuse.

    Where nothing was ever served nothing can differ. Where something was, the check passes on evidence alone: the
    service logs a request in ten minutes whatever the sample is.
    """
    # what an earlier try said is not said of this one, which may end before it says anything
    storage.remove(settings.run_uri(night.run_id, RESULT))
    records: list[Record] = []
    try:
        request_log.clear_out(settings)
        records = request_log.newest(settings, settings.quality.skew_requests)
        compared = compare(settings, records)
    except EvensongError as error:
        compared = Comparison(failures=[f"the request log cannot be read: {error}"])
    found, tolerance = compared.found, settings.quality.skew_tolerance
    above = [skew.name for skew in found if skew.max_difference > tolerance]
    success = not above and not compared.failures
    message = _message(found, above, compared, len(records), tolerance)
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
            "failures": compared.failures,
            "notes": compared.notes,
        },
    )


def compare(settings: Settings, records: Sequence[Record]) -> Comparison:
    """Every feature and every score of the records, as they were served and as the offline path gives them."""
    made = Comparison()
    readable = [one for one in records if one.user_features is not None and one.features_as_of is not None]
    if unreadable := len(records) - len(readable):
        said = f"{unreadable} of {len(records)} requests were answered without features: the online store was away"
        (made.notes if readable else made.failures).append(said)
    fillings = _fillings(settings, readable)
    models = _Models(settings)
    answered = [number for number, filled in enumerate(fillings) if any(_filled(one) == filled for one in readable)]
    for number in answered:
        mine = [record for record in readable if _filled(record) == fillings[number]]
        offline = [_Offline(settings, filled, mine) for filled in fillings[number : number + 1 + LATER]]
        if problem := offline[0].problem:
            said = f"{len(mine)} requests of {fillings[number][0].isoformat()} cannot be replayed: {problem}"
            # what was served last must be there to compare; older versions of the tables may have gone
            (made.failures if number == answered[-1] else made.notes).append(said)
            continue
        for record in mine:
            made.pairs += _replay(settings, record, offline, models)
    newest = readable[0].model_version if readable else None
    models.tell(made, newest)
    if readable and not made.pairs and not made.failures:
        made.failures.append(f"none of {len(readable)} requests could be replayed")
    return made


# ---------------------------------------------------------------- what was there


def _fillings(settings: Settings, records: Iterable[Record]) -> list[Filled]:
    """What the records were answered from and what the store held since, oldest first."""
    from evensong.pipelines.features import MATERIALIZED

    found = {_filled(record) for record in records}
    marker = storage.join(settings.lake, MATERIALIZED)
    if storage.exists(marker):
        now = storage.read_json(marker)
        for one in (now, *now.get("before", [])):
            found.add((datetime.fromisoformat(one["as_of"]).astimezone(UTC), _sorted(one.get("versions"))))
    return sorted(found)


def _filled(record: Record) -> Filled:
    assert record.features_as_of is not None
    return datetime.fromisoformat(record.features_as_of).astimezone(UTC), _sorted(record.feature_versions)


def _sorted(versions: Any) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((name, version) for name, version in (versions or {}).items() if version is not None))


class _Offline:
    """The features of some records' users and items as training would have joined them; computed when asked for."""

    def __init__(self, settings: Settings, filled: Filled, records: Sequence[Record]) -> None:
        self._settings, self._filled = settings, filled
        self._ids = {
            "user_id": sorted({record.user_id for record in records}),
            "item_id": sorted({item for record in records for item in _items_of(record)}),
        }
        self._rows: dict[str, Rows] | None = None
        self._problem: str | None = None
        self._tables: dict[str, ItemTable] = {}

    @property
    def problem(self) -> str | None:
        """Why there are none."""
        if self._rows is None and self._problem is None:
            try:
                self._rows = self._joined()
            except (EvensongError, OSError, pl.exceptions.PolarsError) as error:
                self._problem = str(error)
        return self._problem

    def table(self, version: str, model: Recommender) -> ItemTable:
        """All the items as the model of that version reads them."""
        if version not in self._tables:
            rows = {item_id: self.of("item_id", item_id) for item_id in self._ids["item_id"]}
            self._tables[version] = model.prepare_items(_frame(self._settings, rows))
        return self._tables[version]

    def of(self, entity: str, key: str) -> dict[str, Any]:
        """The features of a user or an item."""
        if self.problem or self._rows is None:
            return {}
        return self._rows[entity].get(key, {})

    def _joined(self) -> dict[str, Rows]:
        from evensong.features.offline import FeatureReader
        from evensong.features.shadow import rows_of, shadow, views_of, write_view
        from evensong.features.store import RECOMMENDER, SERVING_FILTERS
        from evensong.features.views import entity_of, schemas

        moment, versions = self._filled
        declared = schemas(self._settings.features)
        answers: dict[str, Rows] = {}
        with shadow(self._settings) as copy:
            for view in {**views_of(copy, RECOMMENDER), **views_of(copy, SERVING_FILTERS)}:
                schema = declared[view]
                rows = rows_of(self._settings, view, version=dict(versions).get(view))
                there = rows.collect_schema().names()
                wanted = pl.col(entity_of(view)).is_in(self._ids[entity_of(view)])
                missing = [pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in there]
                write_view(copy, view, rows.filter(wanted).with_columns(missing).select(list(schema)).collect())
            reader = FeatureReader(copy)
            for entity, services in (("user_id", (RECOMMENDER, SERVING_FILTERS)), ("item_id", (RECOMMENDER,))):
                keys = pl.DataFrame({entity: self._ids[entity]}, schema={entity: pl.String})
                asked = keys.with_columns(pl.lit(moment, TIMESTAMP).alias("event_timestamp"))
                joined = [keys]
                for service in services:
                    rows_at = reader.join(asked, service, of=entity)
                    joined.append(rows_at.select(reader.features_of(service, entity)))
                answers[entity] = {row[entity]: row for row in pl.concat(joined, how="horizontal").to_dicts()}
        return answers


def _items_of(record: Record) -> list[str]:
    """The items that decided the answer's scores: those answered, and those of the user's history."""
    history = (record.user_features or {}).get("recent_item_ids") or []
    return [*(item["item_id"] for item in record.items), *history, *record.context.get("recent_item_ids", [])]


class _Models:
    """The bundles that answered, each fetched once; and which features each reads, by view."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[str, tuple[Recommender | None, dict[str, list[str]]]] = {}
        self._problems: dict[str, EvensongError] = {}
        self._asked: dict[str, int] = {}
        self._unknown: dict[str, list[str]] = {}

    def model(self, record: Record) -> Recommender | None:
        """The model that answered; none where it cannot be had."""
        self._asked[record.model_version] = self._asked.get(record.model_version, 0) + 1
        return self._of(record.model_version)[0]

    def features(self, record: Record, entity: str) -> dict[str, list[str]]:
        """View to the features that the model reads of it, those of this release's views."""
        from evensong.features.views import entity_of

        return {view: names for view, names in self._of(record.model_version)[1].items() if entity_of(view) == entity}

    def tell(self, made: Comparison, newest: str | None) -> None:
        """Say which scores and features were not compared, and whether they should have been."""
        for version, error in self._problems.items():
            said = f"{self._asked.get(version, 0)} requests of version {version} keep their scores unchecked: {error}"
            # a bundle goes by the retention rule, but never that of what answered last
            by_rule = version != newest and self._is_collected(version)
            (made.notes if by_rule else made.failures).append(said)
        for version, names in self._unknown.items():
            made.notes.append(f"version {version} reads what this release has no more: {', '.join(names)}")

    def _is_collected(self, version: str) -> bool:
        from evensong.registry import versions

        try:
            return versions.COLLECTED in versions.get(self._settings, version).tags
        except EvensongError:
            return False

    def _of(self, version: str) -> tuple[Recommender | None, dict[str, list[str]]]:
        if version not in self._known:
            self._known[version] = self._opened(version)
        return self._known[version]

    def _opened(self, version: str) -> tuple[Recommender | None, dict[str, list[str]]]:
        from evensong.features.dictionary import build_dictionary, for_manifest
        from evensong.features.store import RECOMMENDER
        from evensong.features.views import schemas
        from evensong.recommender.funnel import Recommender
        from evensong.registry import bundle

        declared = schemas(self._settings.features)
        model, listed = None, None
        try:
            directory = bundle.fetch(self._settings, version)
            listed = bundle.read_manifest(directory).get("features")
            model = Recommender.load(directory)
        except EvensongError as error:
            self._problems[version] = error
        if not isinstance(listed, dict) or not listed.get("versions"):
            listed = for_manifest(build_dictionary(self._settings), RECOMMENDER)
        by_view: dict[str, list[str]] = {}
        for full in listed["versions"]:
            view, _, name = full.partition(".")
            if name in declared.get(view, {}):
                by_view.setdefault(view, []).append(name)
            else:
                self._unknown.setdefault(version, []).append(full)
        return model, by_view


# ---------------------------------------------------------------- the replay


def _replay(settings: Settings, record: Record, offline: Sequence[_Offline], models: _Models) -> Iterator[Pair]:
    """Every value of one request, served and offline."""
    user, pairs = _met(
        record.user_features or {}, models.features(record, "user_id"), offline, "user_id", record.user_id
    )
    yield from ((name, record.request_id, *values) for name, values in pairs.items())
    items = {}
    for item in record.items:
        # a popular item may be answered without any: it is no candidate of the model, or there were none to be read
        if item["source"] != "model" and item.get("features") is None:
            continue
        listed = models.features(record, "item_id")
        items[item["item_id"]], pairs = _met(item.get("features") or {}, listed, offline, "item_id", item["item_id"])
        yield from ((name, record.request_id, *values) for name, values in pairs.items())
    hidden = _hidden(record, offline)
    yield HIDDEN, record.request_id, record.num_hidden, len(hidden)
    if record.source == "model" and (model := models.model(record)) is not None:
        yield from _scores(settings, record, model, user, items, hidden, offline)


def _met(
    served: Row, listed: Mapping[str, Sequence[str]], offline: Sequence[_Offline], entity: str, key: str
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """The offline row that the request met, and each listed feature's value on both sides.

    The store is filled view by view and key by key while requests are answered, so each view's values may be those of
    the filling that the record names or of the next ones.
    """
    row = dict(offline[0].of(entity, key))
    for names in listed.values():
        best = distance(served, row, names)
        for later in offline[1:]:
            if best == 0:
                break
            other = later.of(entity, key)
            if (apart := distance(served, other, names)) < best:
                best = apart
                row |= {name: other[name] for name in names if name in other}
    pairs = {
        name: (served.get(name, ABSENT), row.get(name, ABSENT)) for name in sorted(chain.from_iterable(listed.values()))
    }
    return row, pairs


def _hidden(record: Record, offline: Sequence[_Offline]) -> set[str]:
    """What the filter rule and the caller hid: of the first filling by which they are as many as were hidden."""
    asked = {*record.exclude_item_ids, *record.context.get("recent_item_ids", [])}
    found = []
    for one in offline:
        seen = one.of("user_id", record.user_id).get(f"{record.filter}_item_ids") or []
        found.append(asked | set(seen))
        if len(found[-1]) == record.num_hidden:
            return found[-1]
    return found[0]


def _scores(
    settings: Settings,
    record: Record,
    model: Recommender,
    user: Row,
    items: Rows,
    hidden: set[str],
    offline: Sequence[_Offline],
) -> Iterator[Pair]:
    """The score of each item that the model answered, and the same model's score from the offline features."""
    from evensong.recommender.session import continued

    frame = continued(_user_frame(settings, user), record.context.get("recent_item_ids", []))
    answered = {item["item_id"]: item["score"] for item in record.items if item["source"] == "model"}
    best: list[Pair] = []
    for one in offline:
        # the items of the history stand in no record: they too may be of the next filling
        if all(row == one.of("item_id", item_id) for item_id, row in items.items()):
            table = one.table(record.model_version, model)
        else:
            history = {item_id: one.of("item_id", item_id) for item_id in _items_of(record)}
            table = model.prepare_items(_frame(settings, history | items))
        again = model.score_of(frame, table, answered, now=record.at, k=record.k + MORE, hidden=hidden)
        pairs = [(SCORE, record.request_id, score, again.get(item_id, ABSENT)) for item_id, score in answered.items()]
        if not best or _farthest(pairs) < _farthest(best):
            best = pairs
        if _farthest(best) < 1e-6:
            break
    yield from best


def _farthest(pairs: Sequence[Pair]) -> float:
    return max((difference(served, offline) for _, _, served, offline in pairs), default=0.0)


def _user_frame(settings: Settings, row: Row) -> Frame:
    from evensong.features.views import declared_views, features_of

    schema = {"user_id": pl.String(), **features_of(declared_views(settings.features).values(), "user_id")}
    return pl.DataFrame([{name: row.get(name) for name in schema}], schema=schema)


def _frame(settings: Settings, items: Rows) -> Frame:
    from evensong.features.views import declared_views, features_of

    schema = {"item_id": pl.String(), **features_of(declared_views(settings.features).values(), "item_id")}
    rows = [{name: row.get(name) for name in schema} | {"item_id": item_id} for item_id, row in items.items()]
    return pl.DataFrame(rows, schema=schema)


def _message(found: list[Skew], above: list[str], compared: Comparison, num_requests: int, tolerance: float) -> str:
    if not num_requests and not compared.failures:
        return "no request was answered yet, so nothing can differ"
    values = sum(skew.num_values for skew in found)
    if above:
        # what a score was made from tells more than the score
        worst = next((skew for skew in found if skew.name in above and skew.name != SCORE), found[0])
        return (
            f"{', '.join(above[:5])} served otherwise than offline: {worst.name} differs by {worst.max_difference:.3g} "
            f"(request {worst.request_id}: served {worst.served}, offline {worst.offline}), allowed {tolerance:g}"
        )
    if compared.failures:
        return f"{num_requests} requests prove too little: {'; '.join(compared.failures)}"
    worst = found[0]
    return (
        f"{values:,} values of {num_requests} requests: served and offline differ by {worst.max_difference:.3g} "
        f"at most ({worst.name}), allowed {tolerance:g}"
    )
