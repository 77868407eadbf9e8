"""What the gate is told beside the report: the night's inputs, the bundle's fitness to serve, its online value."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from evensong.data import storage
from evensong.errors import BundleError, BusyError, DamagedFileError, RegistryError, StorageError
from evensong.evaluation import metrics
from evensong.evaluation.evidence import GateInputs, OffPolicyEstimate
from evensong.evaluation.policy import PromotionPolicy
from evensong.pipelines import off_policy
from evensong.recommender.funnel import ItemTable, Recommender
from evensong.registry import aliases, bundle, versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings, without_password
from evensong.types import EvaluationReport, Frame, Night

log = logging.getLogger(__name__)

#: What earlier steps may leave in the run's folder, each with `success`.
STEPS = ("validation", "leak_canary", "skew")
#: Users whose recommendations are timed; the slowest of them, a fifth, are timed so often.
NUM_USERS = 200
REPEATS = 5


@dataclass
class Found:
    """What was gathered so far."""

    passed: dict[str, bool] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    champion_figures: dict[str, float] = field(default_factory=dict)

    def say(self, name: str, passed: bool, message: str) -> None:
        """The outcome of a check of the inputs."""
        self.passed[name], self.messages[name] = passed, message

    @contextmanager
    def checking(self, name: str) -> Iterator[None]:
        """Whatever goes wrong inside fails the check of that name; only what another try may mend is raised.

        Raises:
            StorageError, RegistryError, BusyError: a store does not answer.
        """
        try:
            yield
        except (BundleError, DamagedFileError) as error:
            self.say(name, False, str(error))
        except (StorageError, RegistryError, BusyError):
            raise
        except Exception as error:
            # a red task would leave a reviewer without a verdict and without a dossier
            log.exception("the gate's check %s cannot be computed", name)
            said = without_password(f"{type(error).__name__}: {error}")
            self.say(name, False, f"cannot be computed: {said}")


def collect(
    settings: Settings, night: Night, version: ModelVersion, report: EvaluationReport, policy: PromotionPolicy
) -> GateInputs:
    """Everything that this night can tell; what it cannot is left out, and the gate says so where the policy asks.

    Raises:
        StorageError, RegistryError, BusyError: a store does not answer.
    """
    recipe = version.tags.get(versions.RECIPE, "")
    before = aliases.rival(settings, night.as_of, recipe, version.version)
    now = aliases.champion(settings)
    found = Found()
    for name in STEPS:
        with found.checking(name):
            _step(settings, night, name, found)
    directory = None
    with found.checking("bundle"):
        directory = bundle.fetch(settings, version.version)
        found.say("bundle", True, "every file has its hash")
    if directory is not None:
        with found.checking("features_served"):
            _features_served(settings, night, bundle.read_manifest(directory), found)
        _serves(settings, night, report, directory, before, found)
    covariate_means: dict[str, float] = {}
    with found.checking("covariates"):
        covariate_means = _covariate_means(settings, night, report)
    estimates: tuple[OffPolicyEstimate, ...] = ()
    if policy.off_policy.enabled:
        with found.checking("off_policy"):
            estimates = off_policy.run(settings, night, report)
    return GateInputs(
        passed=found.passed,
        messages=found.messages,
        figures=found.figures,
        champion_figures=found.champion_figures,
        champion_version=before.version if before else None,
        newest_champion=now.version if now else None,
        newest_champion_as_of=now.as_of if now else None,
        twin=now.version if now and _are_twins(now, version) else None,
        earlier_attempts=earlier_attempts(settings, version),
        covariate_means=covariate_means,
        off_policy=estimates,
    )


def earlier_attempts(settings: Settings, version: ModelVersion) -> tuple[str, ...]:
    """The versions that the same night made before this one, oldest first."""
    same = [one for one in versions.listed(settings) if one.as_of == version.as_of and one.number < version.number]
    return tuple(one.version for one in sorted(same, key=lambda one: one.number))


def _are_twins(champion: ModelVersion, version: ModelVersion) -> bool:
    """Whether they are two versions, though made of the same: a machine that rounds differently from day to day."""
    same = champion.as_of == version.as_of and champion.tags.get(versions.RECIPE) == version.tags.get(versions.RECIPE)
    return same and versions.RECIPE in version.tags and champion.version != version.version


def _serves(
    settings: Settings,
    night: Night,
    report: EvaluationReport,
    directory: Path,
    before: ModelVersion | None,
    found: Found,
) -> None:
    """Sizes, latencies and answers of the bundle that would serve, beside the champion's."""
    has_users = storage.exists(settings.run_uri(night.run_id, "training_set", "users_holdout.parquet"))
    champion = None
    if before is not None:
        with found.checking("champion_bundle"):
            theirs = bundle.fetch(settings, before.version)
            found.champion_figures["bundle_megabytes"] = bundle.size_bytes(theirs) / 1e6
            champion = Recommender.load(theirs) if has_users else None
    with found.checking("bundle"):
        found.figures["bundle_megabytes"] = bundle.size_bytes(directory) / 1e6
        if (recall := index_recall(directory)) is not None:
            found.figures["bundle_index_recall"] = recall
        if has_users:
            model = Recommender.load(directory)
            found.figures["bundle_recall_ratio"] = recall_ratio(settings, night, report, model)
            ours, other = latencies(settings, night, model, champion)
            found.figures |= ours
            found.champion_figures |= other


def recall_ratio(settings: Settings, night: Night, report: EvaluationReport, model: Recommender) -> float:
    """What the bundle that would serve finds of the held-out events, over what the judged models found of them.

    Without a refit they are the same weights. A refit has learned these very events, so it finds more of them, unless
    its training went wrong: nobody else ever judges it. NaN where the judged models found nothing.

    Raises:
        BundleError: a score is no number.
    """
    from evensong.pipelines import evaluate, train

    training_set, k = settings.run_uri(night.run_id, "training_set"), settings.evaluation.recall_k
    users, targets = evaluate.judged(settings, night, training_set, report.window_start)
    items = model.prepare_items(train.read_items(training_set, final=False))
    start = train.cutoff_of(settings, night, final=False)
    lists = model.recommend(users, items, now=start, k=k, exclude=evaluate.excluded(users, settings.serving.filter))
    if broken := lists.filter(~pl.col("score").is_finite())["user_id"].n_unique():
        raise BundleError(f"expected finite scores, got none for {broken} of {len(users)} users; train again")
    hits_UK, num_targets_U = metrics.hits(lists, targets, users["user_id"].to_list(), k)
    judged = report.challenger.metrics.get(f"recall_at_{k}", 0.0)
    return float(metrics.recall_at_k(hits_UK, num_targets_U, k).mean()) / judged if judged > 0 else math.nan


def latencies(
    settings: Settings, night: Night, challenger: Recommender, champion: Recommender | None
) -> tuple[dict[str, float], dict[str, float]]:
    """`latency_p50_seconds` and `latency_p99_seconds` of one user's recommendation, of both models in this process.

    The models take turns on the same users, more often on the slowest; of each user's repeats the fastest counts, and
    a repeat counts no longer than this process worked on it. So what else runs on the machine matters little, and what
    the model needs for its hardest users does.
    """
    from evensong.pipelines import evaluate

    training_set = settings.run_uri(night.run_id, "training_set")
    users = storage.read_frame(storage.join(training_set, "users_holdout.parquet")).sort("user_id")
    users = users.gather_every(max(1, len(users) // NUM_USERS)).head(NUM_USERS)
    items = storage.read_frame(storage.join(training_set, "items_final.parquet"))
    if users.is_empty():
        return {}, {}
    models = [(model, model.prepare_items(items)) for model in (challenger, champion) if model is not None]
    hidden, k = evaluate.excluded(users, settings.serving.filter), settings.serving.default_k

    def seconds(model: Recommender, table: ItemTable, user: Frame) -> float:
        wall, worked = time.perf_counter(), time.process_time()
        model.recommend(user, table, now=night.as_of, k=k, exclude=hidden)
        return min(time.perf_counter() - wall, time.process_time() - worked)

    fastest = np.full((len(models), len(users)), np.inf)
    rows = np.arange(len(users))
    for _ in range(REPEATS):
        for row in rows.tolist():
            for number, (model, table) in enumerate(models):
                fastest[number, row] = min(fastest[number, row], seconds(model, table, users[row]))
        # the 99th percentile is among these
        rows = np.unique(np.argsort(-fastest, axis=1)[:, : max(10, len(users) // 5)])
    figures = [_quantiles(row) for row in fastest]
    return figures[0], figures[1] if champion is not None else {}


def _covariate_means(settings: Settings, night: Night, report: EvaluationReport) -> dict[str, float]:
    from evensong.pipelines import evaluate

    training_set = settings.run_uri(night.run_id, "training_set")
    if not storage.exists(storage.join(training_set, "targets.parquet")):
        return {}
    return evaluate.covariate_means(settings, training_set, report.window_start)


def _step(settings: Settings, night: Night, name: str, found: Found) -> None:
    place = settings.run_uri(night.run_id, f"{name}.json")
    if not storage.exists(place):
        return
    said: dict[str, Any] = storage.read_json(place)
    passed = said.get("success") is True
    found.say(name, passed, str(said.get("message") or ("passed" if passed else f"did not pass, see {place}")))
    if name == "skew" and isinstance(said.get("max_difference"), (int, float)):
        found.figures["max_skew"] = float(said["max_difference"])


def _features_served(settings: Settings, night: Night, manifest: dict[str, Any], found: Found) -> None:
    """Whether the online store holds this night's features as the bundle was trained on them, as the service asks it.

    The store's marker says what filled it; one of a release that did not say so was filled by this code.

    Raises:
        BundleError: a feature is not served, or is defined differently.
    """
    from evensong.features.dictionary import build_dictionary, check_served
    from evensong.pipelines.features import MATERIALIZED

    if not isinstance(manifest.get("features"), dict):
        return
    place = storage.join(settings.lake, MATERIALIZED)
    if not storage.exists(place):
        raise BundleError(f"{place}: nothing was materialized, so the online store serves no feature; run materialize")
    marker: dict[str, Any] = storage.read_json(place)
    as_of = datetime.fromisoformat(marker["as_of"]).astimezone(UTC)
    if as_of < night.as_of:
        raise BundleError(
            f"the online store holds the features of {as_of:%Y-%m-%d %H:%M}; materialize this night first"
        )
    check_served(manifest["features"], marker.get("features") or build_dictionary(settings))
    found.say("features_served", True, "the store serves every feature as trained")


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
