"""The step that reports on the night's features: missing, spread, drift, redundant groups, what the champion needs."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.data import storage
from evensong.errors import EvensongError, StorageError
from evensong.monitoring.feature_report import FeatureReport, Importance, build_report, pictures, render
from evensong.monitoring.feature_report import permutation_importance as importance_of
from evensong.registry import aliases, tracking
from evensong.settings import Settings
from evensong.types import Frame, Night

log = logging.getLogger(__name__)

FOLDER, PAGE, DATA = "feature_report", "index.html", "report.json"
#: Columns of the examples that are no features.
_LABEL = ("user_id", "item_id", "event_timestamp", "event_type", "value", "part", "propensity")
_SECONDS = "_seconds"
#: Lists whose elements belong to each other one by one.
_PAIRS = (("recent_item_ids", "recent_event_types"), ("top_categories", "top_category_shares"))


def run(settings: Settings, night: Night) -> str:
    """Write `feature_report/` (page, pictures, JSON), log it on the night's MLflow run, and return its URI.

    Current are the labels of the held-out days, each with the features that it saw; they are compared with those of
    the days before. Importance is that of the champion whom the night was compared with, or of the present one.

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
        _sampled(_aged(rows.filter(part).select("event_timestamp", *names)), settings.quality.report_rows)
        for part in (~held_out, held_out)
    )
    title = f"Features of the night of {night.as_of:%Y-%m-%d %H:%M} UTC"
    report = build_report(before, after, title=title)
    try:
        whole, losses = importance(settings, night, training_set)
    except EvensongError as error:
        log.warning("permutation importance is left out: %s", error)
        return report
    return report.model_copy(update={"metric": whole, "importance": losses})


def importance(settings: Settings, night: Night, training_set: str) -> tuple[float | None, tuple[Importance, ...]]:
    """The champion's recall on some held-out users, and what of it each feature is worth; none without a champion."""
    champion = aliases.champion_before(settings, night.as_of) or aliases.champion(settings)
    users, wanted = _asked(settings, night, training_set)
    if champion is None or users.is_empty():
        return None, ()
    from evensong.pipelines import evaluate, train
    from evensong.recommender.funnel import Recommender

    now, k = train.cutoff_of(settings, night, final=False), settings.evaluation.recall_k
    model = Recommender.load(train.champion_models(settings, champion.version, now)[0])
    items = storage.read_frame(storage.join(training_set, "items_train.parquet"))
    hidden = evaluate.excluded(users, settings.serving.filter)
    table = model.prepare_items(items)

    def recalls(asked: Frame, of_items: Any) -> NDArray[Any]:
        lists = model.recommend(asked, of_items, now=now, k=k, exclude=hidden)
        shown = {user: set(ids) for user, ids in lists.group_by("user_id").agg("item_id").iter_rows()}
        return np.array([len(shown.get(user, set()) & wanted[user]) / len(wanted[user]) for user in asked["user_id"]])

    def mean(_: Frame, values: NDArray[Any]) -> float:
        return float(values.mean())

    draw = np.random.default_rng([night.seed, 21])
    hides = ("user_id", "seen_item_ids", "purchased_item_ids")
    of_users = importance_of(
        users,
        _together([name for name in users.columns if name not in hides]),
        lambda frame: recalls(frame, table),
        mean,
        num_repeats=1,
        generator=draw,
    )
    of_items = importance_of(
        items,
        [name for name in items.columns if name != "item_id"],
        lambda frame: recalls(users, model.prepare_items(frame)),
        mean,
        num_repeats=1,
        generator=draw,
    )
    found = sorted([*of_users, *of_items], key=lambda one: (-one.loss, one.name))
    return mean(users, recalls(users, table)), tuple(found)


def _together(names: list[str]) -> list[str | tuple[str, ...]]:
    """The features, those of one list and its companion as one."""
    pairs = [pair for pair in _PAIRS if set(pair) <= set(names)]
    paired = {name for pair in pairs for name in pair}
    return [*pairs, *(name for name in names if name not in paired)]


def _asked(settings: Settings, night: Night, training_set: str) -> tuple[Frame, dict[str, set[str]]]:
    """Some held-out users with what they wanted, drawn by seed."""
    targets = storage.read_frame(storage.join(training_set, "targets.parquet"))
    wanted = {user: set(ids) for user, ids in targets.group_by("user_id").agg("item_id").iter_rows()}
    users = storage.read_frame(storage.join(training_set, "users_holdout.parquet")).sort("user_id")
    users = users.filter(pl.col("user_id").is_in(list(wanted)))
    number = min(settings.quality.report_users, len(users))
    drawn = np.random.default_rng([night.seed, 20]).choice(len(users), number, replace=False)
    return users[np.sort(drawn)], wanted


def _aged(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Moments as days before the label: a moment itself always moves on."""
    names = [name for name in rows.collect_schema().names() if name.endswith(_SECONDS)]
    now = pl.col("event_timestamp").dt.epoch("us") / 1e6
    ages = [((now - pl.col(name)) / 86_400).alias(name.removesuffix(_SECONDS) + "_days_ago") for name in names]
    return rows.with_columns(ages).drop("event_timestamp", *names)


def _sampled(rows: pl.LazyFrame, most: int) -> Frame:
    """Evenly spread rows, so many at most."""
    number = rows.select(pl.len()).collect().item()
    return rows.gather_every(max(1, -(-number // most))).collect()
