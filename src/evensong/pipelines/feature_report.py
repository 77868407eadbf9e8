"""The step that reports on the night's features: missing, spread, drift, redundant groups, what the champion needs."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.data import storage
from evensong.errors import EvensongError, StorageError
from evensong.features.model_columns import ModelColumns
from evensong.features.shop_columns import read_features
from evensong.models.inputs import USER_FEATURES, encode_items
from evensong.models.saved import COLUMNS, load_ranker, load_towers
from evensong.monitoring.feature_page import pictures, render
from evensong.monitoring.feature_report import FeatureReport, Importance, build_report, permutation_importance
from evensong.pipelines import evaluate, skew, train
from evensong.recommender.funnel import ITEM_FEATURES, Recommender
from evensong.registry import aliases, tracking
from evensong.registry.versions import ModelVersion
from evensong.retrieval.faiss_index import ItemIndex
from evensong.settings import IndexSettings, Settings
from evensong.types import Frame, Night, Skew

log = logging.getLogger(__name__)

FOLDER, PAGE, DATA = "feature_report", "index.html", "report.json"
#: Columns of the examples that are no features.
_LABEL = ("user_id", "item_id", "event_timestamp", "event_type", "value", "part", "propensity")
#: JSON as it stands says nothing by itself; what columns read of it is in the report.
_JSON = ("user_attributes", "item_attributes")
_SECONDS = "_seconds"
#: Lists whose elements belong to each other one by one, and mean nothing when only one of them is shuffled.
_ALIGNED = (
    ("recent_item_ids", "recent_event_types"),
    ("top_categories", "top_category_shares"),
    ("taste_categories", "taste_shares"),
    ("sequence_item_ids", "sequence_event_types", "sequence_categories", "sequence_gap_seconds"),
)
#: What the item tower reads beside the declared columns.
_OF_TOWER = ("title", "category_path", "price")
#: Kinds of columns whose arrays say something that no feature says by itself.
_MADE = ("text", "image", "cross", "rate")


def run(settings: Settings, night: Night) -> str:
    """Write `feature_report/` (page, pictures, JSON), log it on the night's MLflow run, and return its URI.

    Current are the labels of the held-out days, each with the features that it saw; they are compared with those of
    the days before. Importance is that of the champion after the night.

    Raises:
        StorageError: the night has no training set.
    """
    report = build(settings, night)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, FOLDER)
        (place / "distributions").mkdir(parents=True)
        (place / PAGE).write_text(render(report))
        (place / DATA).write_text(report.model_dump_json(indent=2) + "\n")
        for name, picture in pictures(report).items():
            (place / name).write_text(picture)
        tracking.log_folder(settings, night, place, FOLDER)
        figures = {"features.max_psi": max((one.psi for one in report.drift), default=0.0)}
        figures["features.num_drifted"] = float(sum(one.verdict == "much" for one in report.drift))
        if report.served:
            figures["skew.max_difference"] = max(one.max_difference for one in report.served)
            figures["skew.num_different"] = float(sum(one.num_different > 0 for one in report.served))
        tracking.log_metrics(settings, night, figures)
        return storage.write_folder(place, settings.run_uri(night.run_id, FOLDER))


def build(settings: Settings, night: Night) -> FeatureReport:
    """The report as data."""
    training_set = settings.run_uri(night.run_id, "training_set")
    uri = storage.join(training_set, "examples.parquet")
    if not storage.exists(uri):
        raise StorageError(
            f"{uri}: expected the training set of the night, found none; run `evensong nightly --as-of "
            f"{night.as_of:%Y-%m-%dT%H:%M:%SZ}` first"
        )
    rows = pl.scan_parquet(uri, storage_options=storage.storage_options(uri))
    names = [name for name in rows.collect_schema().names() if name not in _LABEL]
    held_out = pl.col("part") == "holdout"
    before, after = (
        _sampled(rows.filter(part).select("event_timestamp", *names), settings.quality.report_rows)
        for part in (~held_out, held_out)
    )
    notes: list[str] = []
    try:
        before, after = _with_columns(settings, night, before), _with_columns(settings, night, after)
    except EvensongError as error:
        notes.append(f"The columns that the models read are not in the report: {error}")
    report = build_report(
        _aged(before),
        _aged(after),
        aligned=_ALIGNED,
        title=f"Features of the night of {night.as_of:%Y-%m-%d %H:%M} UTC",
    )
    found: dict[str, Any] = {}
    try:
        served = _served(settings, night)
    except (EvensongError, ValueError) as error:
        served = {}
        notes.append(f"How far served features were from the offline ones is not in the report: {error}")
    try:
        found = importance(settings, night, training_set)
    except EvensongError as error:
        notes.append(f"Importance is not in the report: {error}")
    for note in notes:
        log.warning("feature report: %s", note)
    return report.model_copy(update=served | found | {"notes": (*notes, *found.get("notes", ()))})


def _served(settings: Settings, night: Night) -> dict[str, Any]:
    """What the skew check found, as fields of the report.

    Raises:
        StorageError: the check left nothing.
    """
    said = storage.read_json(settings.run_uri(night.run_id, skew.RESULT))
    return {
        "served": tuple(Skew.model_validate(one) for one in said.get("largest", [])),
        "served_message": said.get("message"),
    }


# ---------------------------------------------------------------- what the models read


def _with_columns(settings: Settings, night: Night, rows: Frame) -> Frame:
    """The rows with the arrays of the night's fitted columns, those that are not just a feature of the rows."""
    retriever = train.place(settings, night, "retriever", final=False)
    with tempfile.TemporaryDirectory() as folder:
        place = storage.fetch_folder(retriever, Path(folder, "retriever"))
        columns = _columns(settings, place)
        made = [values for table in ("users", "items", "moving") for values in _arrays(columns, table, rows)]
    known = set(rows.columns)
    return rows.with_columns(
        values.alias(values.name if values.name not in known else f"{values.name} (column)") for values in made
    )


def _columns(settings: Settings, retriever: Path) -> ModelColumns:
    """Fitted columns whose encoders remember what the training had them read."""
    if not (retriever / COLUMNS).is_dir():
        return ModelColumns.none()
    return ModelColumns.load(retriever / COLUMNS, cache=storage.join(settings.artifacts, "encoders"))


def _arrays(columns: ModelColumns, table: str, rows: Frame) -> list[pl.Series]:
    fitted = getattr(columns, table)
    sources = sorted(read_features("users" if table == "users" else "items", fitted.columns))
    chosen = {one.name for one in fitted.columns.root if one.kind in _MADE or "." in getattr(one, "place", "")}
    # a title stands in many rows, and is read once
    asked = rows.select(name for name in sources if name in rows.columns and not rows.schema[name].is_nested())
    if not chosen or not asked.columns:
        return []
    different = asked.unique(maintain_order=True).with_row_index("__row")
    places = asked.join(different, on=asked.columns, how="left", nulls_equal=True, maintain_order="left")["__row"]
    arrays = columns.transformed(table, different)
    found = []
    for output in arrays.outputs:
        if output.name not in chosen:
            continue
        values = pl.Series(output.name, arrays[output.name])
        if output.kind == "index":
            # a bucket is a name, not a number
            values = values.cast(pl.String)
        found.append(values.gather(places))
    return found


# ---------------------------------------------------------------- what the champion needs


class _Judge:
    """A model as the report asks it: its items may be shuffled, and are encoded anew where the tower reads them."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        towers = load_towers(directory / "retriever")
        self._vocabularies = dataclasses.replace(
            towers.vocabularies, columns=_columns(settings, directory / "retriever")
        )
        self._weights = dataclasses.replace(towers, vocabularies=self._vocabularies)
        self._model = Recommender.load(directory)
        self._ranker = load_ranker(directory / "ranker")
        self._index = ItemIndex.load(directory / "index")
        columns = self._vocabularies.columns
        pairs = columns.pairs
        self.of_tower = {*_OF_TOWER, *read_features("items", columns.items.columns)}
        of_ranker = read_features("items", columns.moving.columns, pairs.items)
        self.of_items = {*ITEM_FEATURES, *self.of_tower, *of_ranker}
        self.of_users = {*USER_FEATURES, *read_features("users", columns.users.columns, pairs.users)}

    def with_items(self, items: Frame) -> Recommender:
        """The model whose index holds these items as its tower sees them; items that it does not know are left out."""
        vectors = self._index.vectors().copy()
        place = {item_id: row for row, item_id in enumerate(self._index.item_ids)}
        known = items.filter(pl.col("item_id").is_in(self._index.item_ids))
        if len(known):
            rows = [place[item_id] for item_id in known["item_id"]]
            vectors[rows] = self._weights.forward().items(encode_items(known, self._vocabularies))
        index = ItemIndex.build(vectors, self._index.item_ids, IndexSettings(kind="flat"))
        return Recommender(self._weights, self._ranker, index, self._model.popularity)


def importance(settings: Settings, night: Night, training_set: str) -> dict[str, Any]:
    """The champion's recall on some held-out users and what of it each feature is worth, as fields of the report.

    Where nobody can be asked, a note says why.
    """
    if not settings.quality.report_users:
        return _without_importance("quality.report_users is 0.")
    champion = _champion(settings, night)
    if champion is None:
        return _without_importance("there is no champion.")
    users, wanted = _asked(settings, night, training_set)
    if users.is_empty():
        return _without_importance("nobody was held out who wanted something.")
    now, k = train.cutoff_of(settings, night, final=False), settings.evaluation.recall_k
    directory, learned_until = train.champion_models(settings, champion.version, now)
    judge = _Judge(settings, directory)
    items = train.read_items(training_set, final=False)
    hidden = evaluate.excluded(users, settings.serving.filter)
    whole = judge.with_items(items)

    def recalls(asked: Frame, of_items: Frame, model: Recommender) -> NDArray[Any]:
        lists = model.recommend(asked, model.prepare_items(of_items), now=now, k=k, exclude=hidden)
        shown = {user: set(ids) for user, ids in lists.group_by("user_id").agg("item_id").iter_rows()}
        return np.array([len(shown.get(user, set()) & wanted[user]) / len(wanted[user]) for user in asked["user_id"]])

    def measured(frame: Frame, names: set[str], score: Callable[[Frame], NDArray[Any]]) -> list[Importance]:
        return permutation_importance(
            frame,
            _together([name for name in frame.columns if name in names]),
            score,
            lambda _, values: float(values.mean()),
            num_repeats=settings.quality.report_repeats,
            generator=np.random.default_rng([night.seed, 21]),
        )

    # what only the ranker reads of an item needs no new index
    still = judge.of_items - judge.of_tower
    found = [
        *measured(users, judge.of_users, lambda frame: recalls(frame, items, whole)),
        *measured(items, judge.of_tower, lambda frame: recalls(users, frame, judge.with_items(frame))),
        *measured(items, still, lambda frame: recalls(users, frame, whole)),
    ]
    there = {*users.columns, *items.columns} - {"user_id", "item_id", "seen_item_ids", "purchased_item_ids"}
    notes: tuple[str, ...] = ()
    if learned_until > now:
        notes = (f"Version {champion.version} has learned the held-out days: its recall is better than it will be.",)
    return {
        "model": f"version {champion.version}",
        "metric": float(recalls(users, items, whole).mean()),
        "importance": tuple(sorted(found, key=lambda one: (-one.loss, one.name))),
        "unread": tuple(sorted(there - judge.of_users - judge.of_items)),
        "notes": notes,
    }


def _without_importance(why: str) -> dict[str, Any]:
    return {"notes": (f"Importance is not in the report: {why}",)}


def _champion(settings: Settings, night: Night) -> ModelVersion | None:
    """The champion as the night left it: the present one, unless a later night has made it."""
    now = aliases.champion(settings)
    if now is None or now.as_of <= night.as_of:
        return now
    return aliases.champion_before(settings, night.as_of + timedelta(microseconds=1))


def _together(names: Sequence[str]) -> list[str | tuple[str, ...]]:
    """The features, lists that belong together as one."""
    groups = [tuple(name for name in group if name in names) for group in _ALIGNED]
    grouped = {name for group in groups for name in group}
    return [*(group for group in groups if group), *(name for name in names if name not in grouped)]


def _asked(settings: Settings, night: Night, training_set: str) -> tuple[Frame, dict[str, set[str]]]:
    """Some held-out users with what they wanted, drawn by seed."""
    targets = storage.read_frame(storage.join(training_set, "targets.parquet"))
    wanted = {user: set(ids) for user, ids in targets.group_by("user_id").agg("item_id").iter_rows()}
    users = storage.read_frame(storage.join(training_set, "users_holdout.parquet")).sort("user_id")
    users = users.filter(pl.col("user_id").is_in(list(wanted)))
    number = min(settings.quality.report_users, len(users))
    drawn = np.random.default_rng([night.seed, 20]).choice(len(users), number, replace=False)
    return users[np.sort(drawn)], wanted


# ---------------------------------------------------------------- rows


def _aged(rows: Frame) -> Frame:
    """Moments as days before the label, since a moment itself always moves on; without what says nothing by itself."""
    names = [name for name in rows.columns if name.endswith(_SECONDS) and rows.schema[name].is_numeric()]
    now = pl.col("event_timestamp").dt.epoch("us") / 1e6
    ages = [((now - pl.col(name)) / 86_400).alias(name.removesuffix(_SECONDS) + "_days_ago") for name in names]
    return rows.with_columns(ages).drop("event_timestamp", *names, *_JSON, strict=False)


def _sampled(rows: pl.LazyFrame, most: int) -> Frame:
    """Evenly spread rows, so many at most."""
    number = rows.select(pl.len()).collect().item()
    return rows.gather_every(max(1, -(-number // most))).collect()
