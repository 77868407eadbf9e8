"""What the gate is told beside the report: the night's inputs, the bundle's fitness to serve, its online value."""

from __future__ import annotations

import json
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.errors import BundleError, EvensongError
from evensong.evaluation.evidence import GateInputs, OffPolicyEstimate
from evensong.evaluation.policy import PromotionPolicy
from evensong.recommender.funnel import ItemTable, Recommender
from evensong.registry import aliases, bundle
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import TIMESTAMP, EvaluationReport, Frame, Night

#: What earlier steps may leave in the run's folder, each with `success`.
STEPS = ("validation", "leak_canary", "skew")
NUM_USERS = 100
REPEATS = 3


def collect(
    settings: Settings, night: Night, version: ModelVersion, report: EvaluationReport, policy: PromotionPolicy
) -> GateInputs:
    """Everything that this night can tell; what it cannot is left out, and the gate says so where the policy asks."""
    before = aliases.champion_before(settings, night.as_of)
    now = aliases.champion(settings)
    passed, messages, figures = _steps(settings, night)
    challenger = _challenger(settings, version, passed, messages)
    champion = bundle.fetch(settings, before.version) if before is not None else None
    theirs: dict[str, float] = {}
    if challenger is not None:
        figures |= {"bundle_megabytes": bundle.size_bytes(challenger) / 1e6}
        if (recall := index_recall(challenger)) is not None:
            figures["bundle_index_recall"] = recall
        theirs |= {"bundle_megabytes": bundle.size_bytes(champion) / 1e6} if champion else {}
        try:
            ours, other = latencies(settings, night, challenger, champion)
        except EvensongError as error:
            passed["bundle"], messages["bundle"] = False, f"cannot answer: {error}"
        else:
            figures |= ours
            theirs |= other
    return GateInputs(
        passed=passed,
        messages=messages,
        figures=figures,
        champion_figures=theirs,
        champion_version=before.version if before else None,
        newest_champion_as_of=now.as_of if now else None,
        covariate_means=_covariate_means(settings, night, report),
        off_policy=off_policy(settings, night, report) if policy.off_policy.enabled else (),
    )


def _covariate_means(settings: Settings, night: Night, report: EvaluationReport) -> dict[str, float]:
    from evensong.pipelines import evaluate

    training_set = settings.run_uri(night.run_id, "training_set")
    if not storage.exists(storage.join(training_set, "targets.parquet")):
        return {}
    return evaluate.covariate_means(settings, training_set, report.window_start)


def latencies(
    settings: Settings, night: Night, challenger: Path, champion: Path | None
) -> tuple[dict[str, float], dict[str, float]]:
    """`latency_p50_seconds` and `latency_p99_seconds` of one user's recommendation, of both bundles in this process.

    The bundles take turns on the same users; of each user's repeats the fastest counts, so that what else runs on the
    machine counts little and what the model needs for its hardest users counts.
    """
    training_set = settings.run_uri(night.run_id, "training_set")
    if not storage.exists(storage.join(training_set, "users_holdout.parquet")):
        return {}, {}
    users = storage.read_frame(storage.join(training_set, "users_holdout.parquet")).sort("user_id").head(NUM_USERS)
    items = storage.read_frame(storage.join(training_set, "items_final.parquet"))
    if users.is_empty():
        return {}, {}
    models = []
    for directory in filter(None, (challenger, champion)):
        model = Recommender.load(directory)
        models.append((model, model.prepare_items(items)))
    fastest = np.full((len(models), len(users)), np.inf)
    for _ in range(REPEATS):
        for row in range(len(users)):
            for number, (model, table) in enumerate(models):
                spent = _seconds(model, table, users[row], night.as_of, settings.serving.default_k)
                fastest[number, row] = min(fastest[number, row], spent)
    figures = [_quantiles(row) for row in fastest]
    return figures[0], figures[1] if champion is not None else {}


def off_policy(settings: Settings, night: Night, report: EvaluationReport) -> tuple[OffPolicyEstimate, ...]:
    """The judged challenger's online value on the window's logged slates; none without logged propensities."""
    from evensong.evaluation.off_policy import estimates

    log = logged_slates(settings, night, report.window_start)
    if log.is_empty():
        return ()
    slates = _challenger_slates(settings, night, log, report.window_start)
    return estimates(log, slates, seed=night.seed)


def logged_slates(settings: Settings, night: Night, window_start: datetime) -> Frame:
    """What was shown in the window: `request_id, user_id, item_id, position, propensity`, and `reward`, 1 if wanted.

    A shown item is an event that is not positive itself and carries position, propensity and request.
    """
    split = settings.split
    rows = (
        Lake(settings.lake)
        .scan("interactions", night.as_of)
        .filter((pl.col("event_timestamp") > window_start) & pl.col("request_id").is_not_null())
        .select("request_id", "user_id", "item_id", "event_type", "position", "propensity")
        .collect()
    )
    positive = pl.col("event_type").is_in(list(split.positive_event_types))
    wanted = rows.filter(positive).select("request_id", "item_id").unique().with_columns(reward=pl.lit(1.0))
    return (
        rows.filter(~positive & pl.col("propensity").is_not_null() & pl.col("position").is_not_null())
        .unique(["request_id", "item_id", "position"], keep="first")
        .join(wanted, on=["request_id", "item_id"], how="left")
        .with_columns(pl.col("reward").fill_null(0.0))
        .drop("event_type")
        .sort("user_id", "request_id", "position", "item_id")
    )


def _challenger_slates(settings: Settings, night: Night, log: Frame, moment: datetime) -> Frame:
    """What the judged challenger would show each logged user, as long as the logged slates, at the window's start."""
    from evensong.features.offline import FeatureReader
    from evensong.features.refresh import seen_at
    from evensong.features.store import RECOMMENDER
    from evensong.pipelines import evaluate, train

    users = log.select("user_id").unique().sort("user_id")
    if len(users) > settings.evaluation.max_users:
        drawn = np.random.default_rng([night.seed, 8]).choice(len(users), settings.evaluation.max_users, replace=False)
        users = users[np.sort(drawn)]
    reader = FeatureReader(settings)
    rows = users.with_columns(
        pl.lit(None, pl.String).alias("item_id"), pl.lit(moment, TIMESTAMP).alias("event_timestamp")
    )
    features = reader.join(rows, RECOMMENDER).select("user_id", *reader.features_of(RECOMMENDER, "user_id"))
    features = features.join(seen_at(settings, moment), on="user_id", how="left", maintain_order="left")
    training_set = settings.run_uri(night.run_id, "training_set")
    items = train.read_items(training_set, final=False)
    with tempfile.TemporaryDirectory() as folder:
        retriever, ranker, index = (
            storage.fetch_folder(settings.run_uri(night.run_id, name), Path(folder, name))
            for name in ("retriever", "ranker", "index")
        )
        popularity = evaluate.popular(settings, training_set, items, moment, final=False)
        challenger = Recommender.of_parts(retriever, ranker, index, popularity)
    depth = log.select(pl.col("position").max()).item() + 1
    lists = challenger.recommend(
        features,
        challenger.prepare_items(items),
        now=moment,
        k=depth,
        exclude=evaluate.excluded(features, settings.serving.filter),
    )
    return lists.select("user_id", "item_id", position=pl.col("rank") - 1)


def _steps(settings: Settings, night: Night) -> tuple[dict[str, bool], dict[str, str], dict[str, float]]:
    passed, messages, figures = {}, {}, {}
    for name in STEPS:
        place = settings.run_uri(night.run_id, f"{name}.json")
        if not storage.exists(place):
            continue
        said: dict[str, Any] = storage.read_json(place)
        passed[name] = said.get("success") is True
        messages[name] = str(said.get("message") or ("passed" if passed[name] else f"did not pass, see {place}"))
        if name == "skew" and isinstance(said.get("max_difference"), (int, float)):
            figures["max_skew"] = float(said["max_difference"])
    return passed, messages, figures


def _challenger(
    settings: Settings, version: ModelVersion, passed: dict[str, bool], messages: dict[str, str]
) -> Path | None:
    """The challenger's bundle as a server would fetch it, its features compared with what the store serves."""
    try:
        directory = bundle.fetch(settings, version.version)
    except BundleError as error:
        passed["bundle"], messages["bundle"] = False, str(error)
        return None
    passed["bundle"], messages["bundle"] = True, "every file has its hash"
    manifest = bundle.read_manifest(directory)
    if isinstance(manifest.get("features"), dict):
        from evensong.features.dictionary import build_dictionary, check_served

        try:
            check_served(manifest["features"], build_dictionary(settings))
            passed["features_served"], messages["features_served"] = True, "the store serves every feature as trained"
        except BundleError as error:
            passed["features_served"], messages["features_served"] = False, str(error)
    return directory


def _seconds(model: Recommender, table: ItemTable, user: Frame, now: datetime, k: int) -> float:
    start = time.perf_counter()
    model.recommend(user, table, now=now, k=k)
    return time.perf_counter() - start


def _quantiles(seconds: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float]:
    return {
        "latency_p50_seconds": float(np.quantile(seconds, 0.5, method="higher")),
        "latency_p99_seconds": float(np.quantile(seconds, 0.99, method="higher")),
    }


def index_recall(directory: Path) -> float | None:
    """The index recall that the bundle itself states: with a refit it is not the judged index."""
    place = directory / "index" / "index.json"
    if not place.is_file():
        return None
    return float(json.loads(place.read_bytes())["index_recall"])
