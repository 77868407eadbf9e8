"""The dossier of a night's challenger: gathered from what the steps left, put on the model version."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from evensong.data import storage
from evensong.errors import EvensongError
from evensong.evaluation import dossier, dossier_page
from evensong.evaluation.dossier import Example, Shift
from evensong.evaluation.evidence import GateInputs
from evensong.evaluation.policy import PromotionPolicy
from evensong.pipelines import docs_pages
from evensong.registry import bundle, tracking, versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings, without_password
from evensong.types import EvaluationReport, Frame, Night, PromotionDecision, Skew

log = logging.getLogger(__name__)

PAGE, DATA = "dossier.html", "dossier.json"
NUM_EXAMPLES, LENGTH, HISTORY = 10, 10, 5
MAX_ROWS = 50_000


def run(
    settings: Settings,
    night: Night,
    version: ModelVersion,
    report: EvaluationReport,
    decision: PromotionDecision,
    policy: PromotionPolicy,
    per_user: Frame | None,
    inputs: GateInputs,
) -> str:
    """Write the dossier into the run's folder and onto the version, link it in the description; return the page's URI.

    A part that cannot be made is left out with the reason, whatever went wrong: a dossier with a gap is better than a
    night without one.
    """
    missing: dict[str, str] = {}

    def part(name: str, make: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return make()
        except Exception as error:
            is_known = isinstance(error, (EvensongError, ValueError))
            log.warning("the dossier's %s cannot be made", name, exc_info=None if is_known else error)
            said = str(error) if isinstance(error, EvensongError) else f"{type(error).__name__}: {error}"
            missing[name] = without_password(said)
            return otherwise

    champion = versions.get(settings, inputs.champion_version) if inputs.champion_version else None
    parts = {
        "examples": part("examples", lambda: examples(settings, night, version, champion), []),
        "drift": part("drift", lambda: drift(settings, night), []),
        "curves": part("curves", lambda: curves(settings, night), {}),
        "changes": part("changes", lambda: configuration_changes(settings, champion, version), []),
        "lineage": lineage(version),
        "training": part("training", lambda: training(settings, night), {}),
        **part("skew", lambda: skew(settings, night), {}),
        **part("validation", lambda: _validation(settings, night), {}),
    }
    made = dossier.build(
        report,
        decision,
        policy,
        per_user,
        inputs,
        title=f"{settings.registry.model_name} v{version.version}",
        version=version.version,
        missing=missing,
        **parts,
    )
    return _store(settings, night, version, made.model_dump(mode="json"), dossier_page.render(made))


def address(settings: Settings, version: str) -> str:
    """Where the MLflow UI shows the version's dossier."""
    return tracking.artifacts_page(settings, versions.get(settings, version).model_id or "")


def link(settings: Settings, version: str) -> None:
    """Put the dossier's address at the head of the version's description, if it is not there."""
    found = versions.get(settings, version)
    address = tracking.artifacts_page(settings, found.model_id or "")
    head = f"[Dossier]({address}): the artifact `{PAGE}`"
    if not found.description.startswith(head):
        rest = (
            found.description.partition("\n\n")[2] if found.description.startswith("[Dossier](") else found.description
        )
        versions.describe(settings, version, f"{head}\n\n{rest}")


def examples(settings: Settings, night: Night, version: ModelVersion, champion: ModelVersion | None) -> list[Example]:
    """What some users with held-out events would be shown by each bundle at the night's `as_of`, in titles."""
    from evensong.pipelines import evaluate
    from evensong.recommender.funnel import Recommender

    training_set = settings.run_uri(night.run_id, "training_set")
    users = storage.read_frame(storage.join(training_set, "users_holdout.parquet")).sort("user_id")
    users = users.gather_every(max(1, len(users) // NUM_EXAMPLES)).head(NUM_EXAMPLES)
    items = storage.read_frame(storage.join(training_set, "items_final.parquet"))
    titles = dict(items.select("item_id", pl.col("title").fill_null(pl.col("item_id"))).iter_rows())
    hidden = evaluate.excluded(users, settings.serving.filter)
    shown: list[dict[str, list[str]]] = []
    for one in filter(None, (version, champion)):
        model = Recommender.load(bundle.fetch(settings, one.version))
        lists = model.recommend(users, model.prepare_items(items), now=night.as_of, k=LENGTH, exclude=hidden)
        named: dict[str, list[str]] = {}
        for user_id, item_id in lists.select("user_id", "item_id").iter_rows():
            named.setdefault(user_id, []).append(titles.get(item_id, item_id))
        shown.append(named)
    return [
        Example(
            user_id=user_id,
            history=[titles.get(item_id, item_id) for item_id in reversed((recent or [])[-HISTORY:])],
            challenger=shown[0].get(user_id, []),
            champion=shown[1].get(user_id, []) if champion is not None else [],
        )
        for user_id, recent in users.select("user_id", "recent_item_ids").iter_rows()
    ]


def drift(settings: Settings, night: Night) -> list[Shift]:
    """The labels' features on the judged days against the training days, the farthest first."""
    from evensong.monitoring.drift import drift as measure

    uri = storage.join(settings.run_uri(night.run_id, "training_set"), "examples.parquet")
    rows = storage.read_frame(uri)
    # A moment in seconds always moves on; how long ago it was is what a model sees of it.
    names = [
        name
        for name, kind in rows.schema.items()
        if kind.is_numeric() and name != "value" and not name.endswith("_seconds")
    ]
    judged = rows.filter(pl.col("part") == "holdout").select(names).head(MAX_ROWS)
    trained = rows.filter(pl.col("part") != "holdout").select(names).tail(MAX_ROWS)
    if judged.is_empty() or trained.is_empty():
        raise ValueError("needs labels on both sides of the holdout's start")
    found = [Shift(name=one.name, psi=one.psi, verdict=one.verdict) for one in measure(trained, judged)]
    return sorted(found, key=lambda shift: (-shift.psi, shift.name))


def skew(settings: Settings, night: Night) -> dict[str, Any]:
    """What the replay of served requests came to, and the largest difference of each feature and of the score."""
    said: dict[str, Any] = storage.read_json(settings.run_uri(night.run_id, "skew.json"))
    return {
        "skew": [Skew.model_validate(one) for one in said.get("largest", [])],
        "skew_message": str(said.get("message", "")),
    }


def training(settings: Settings, night: Night) -> dict[str, str]:
    """What the judged models learned from, and what they were judged on, as the training set says."""
    said = storage.read_json(settings.run_uri(night.run_id, "training_set", "meta.json"))
    parts = said.get("num_examples", {})
    rows = {
        "labels from": said.get("first_label"),
        "held out from": said.get("holdout_start"),
        "last label": said.get("last_label"),
        "labels before the ranker's days": parts.get("retriever"),
        "labels of the ranker's days": parts.get("ranker"),
        "labels held out": parts.get("holdout"),
        "held out and shown with near certainty, so that they judge nobody": said.get("num_bound_to_be_shown"),
        "users with held-out labels": said.get("num_users_holdout"),
        "of these with a target": said.get("num_target_users"),
        "targets": said.get("num_targets"),
        "items known when training ended": said.get("num_items_train"),
        "items known at the night's cutoff": said.get("num_items_final"),
        "hidden from users": said.get("filter"),
    }
    return {name: _plain(value) for name, value in rows.items() if value is not None}


def curves(settings: Settings, night: Night) -> dict[str, list[float]]:
    """The losses by epoch that training kept, by name."""
    found: dict[str, list[float]] = {}
    for name in ("retriever", "ranker", "retriever-final", "ranker-final"):
        place = settings.run_uri(night.run_id, "curves", f"{name}.json")
        if storage.exists(place):
            refit = ", refit" if name.endswith("-final") else ""
            found |= {f"{what}{refit}": values for what, values in sorted(storage.read_json(place).items())}
    if not found:
        raise ValueError("training kept no losses")
    return found


def configuration_changes(
    settings: Settings, champion: ModelVersion | None, version: ModelVersion
) -> list[dossier.Change]:
    """What differs between the two runs' parameters and the two bundles' manifests; nothing without a champion."""
    if champion is None:
        return []
    ours, theirs = (flat(tracking.params_of(settings, one.run_id) | lineage(one)) for one in (version, champion))
    return dossier.changes(theirs, ours)


def flat(values: Mapping[str, str]) -> dict[str, str]:
    """Values that hold a JSON object taken apart, so that one table's version is one line."""
    found: dict[str, str] = {}
    for name, text in values.items():
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, dict):
            inner = {f"{name}.{key}": one if isinstance(one, str) else json.dumps(one) for key, one in value.items()}
            found |= flat(inner)
        else:
            found[name] = text
    return found


def lineage(version: ModelVersion) -> dict[str, str]:
    """Where a version comes from, as its tags say."""
    names = (
        "as_of",
        "train_cutoff",
        "lake_versions",
        "feature_service",
        "features",
        "code_commit",
        "libraries",
        "airflow_run",
        "seed",
        "train_from",
        "refit",
        "bundle_digest",
    )
    return {name: version.tags[name] for name in names if name in version.tags}


def _validation(settings: Settings, night: Night) -> dict[str, Any]:
    said: dict[str, Any] = storage.read_json(settings.run_uri(night.run_id, "validation.json"))
    counts = ("judged", "accepted", "quarantined", "guests", "released")
    return {
        "validation": "This night's validation passed." if said.get("success") else "This night's validation failed.",
        "data_docs": _data_docs(settings, night) if said.get("data_docs") else None,
        "rows": {
            table: {name: f"{found[name]:,}" for name in counts if name in found}
            for table, found in sorted(said.get("tables", {}).items())
        },
    }


def _data_docs(settings: Settings, night: Night) -> str:
    """Where a reviewer opens them: in Airflow where it is in use, else the page itself."""
    if settings.airflow.url or os.environ.get("AIRFLOW_CTX_DAG_RUN_ID"):
        return f"{settings.airflow_address}/evensong/data-docs/{night.run_id}/{docs_pages.FIRST}"
    return docs_pages.docs_uri(settings, night.run_id)


def _plain(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    try:
        return f"{datetime.fromisoformat(str(value)).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return str(value)


def _store(settings: Settings, night: Night, version: ModelVersion, data: dict[str, Any], page: str) -> str:
    content = {PAGE: page.encode(), DATA: json.dumps(data, indent=2, sort_keys=True).encode()}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in content.items():
            Path(folder, name).write_bytes(text)
            versions.attach(settings, version, Path(folder, name))
            storage.write_bytes(settings.run_uri(night.run_id, name), text)
    versions.set_tags(
        settings,
        version.version,
        {
            "dossier_hash": hashlib.sha256(content[PAGE]).hexdigest(),
            "dossier_json_hash": hashlib.sha256(content[DATA]).hexdigest(),
        },
    )
    return settings.run_uri(night.run_id, PAGE)
