"""The step that registers the night's bundle as one model version."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from evensong.data import storage
from evensong.pipelines import recipe
from evensong.pipelines.bundle import judged_uri
from evensong.pipelines.train import trained_from
from evensong.registry import bundle, tracking, versions
from evensong.settings import Settings
from evensong.types import EvaluationReport, Night

LOADER = "evensong.recommender.pyfunc"


def run(settings: Settings, night: Night, bundle_uri: str, evaluation_uri: str) -> str:
    """Register the bundle with its metrics, lineage and a description; return the version's number.

    Raises:
        BundleError: the bundle is incomplete or damaged.
        RegistryError: the registry cannot be reached.
    """
    report = EvaluationReport.model_validate(storage.read_json(evaluation_uri))
    tracking.log_params(settings, night, recipe.params(settings, night))
    if (text := recipe.columns(settings)) is not None:
        tracking.log_text(settings, night, text, recipe.COLUMNS)
    tracking.log_report(settings, night, report)
    with tempfile.TemporaryDirectory() as folder:
        directory = storage.fetch_folder(bundle_uri, Path(folder, "bundle"))
        manifest = bundle.verify(directory)
        judged = None
        if bundle.JUDGED_DIGEST in manifest:
            judged = storage.fetch_folder(judged_uri(settings, night), Path(folder, "judged"))
        version = versions.register(
            settings,
            night,
            directory,
            loader_module=LOADER,
            input_example=pl.DataFrame({"user_id": ["u1", "u2"]}),
            output_example=pl.DataFrame(
                {"user_id": ["u1"], "rank": [1], "item_id": ["i1"], "score": [0.5], "source": ["model"]}
            ),
            metrics=tracking.report_metrics(report),
            tags=_tags(settings, night, manifest),
            description=describe(night, report, manifest),
            judged=judged,
        )
    return version.version


def describe(night: Night, report: EvaluationReport, manifest: dict[str, Any]) -> str:
    """What a reviewer reads first, in Markdown: the night, a table of figures, where everything came from."""
    models = {"challenger": report.challenger}
    if report.champion is not None:
        models[report.champion.model] = report.champion
    models |= dict(sorted(report.baselines.items()))
    metrics = sorted(report.challenger.metrics)
    opening = (
        f"**Night of {night.as_of:%Y-%m-%d %H:%M} UTC**, judged on {report.num_users:,} users and "
        f"{report.num_events:,} held-out events from {report.window_start:%Y-%m-%d %H:%M} to "
        f"{report.window_end:%Y-%m-%d %H:%M}."
    )
    lines = [
        opening,
        "",
        "| metric | " + " | ".join(models) + " |",
        "|---" * (len(models) + 1) + "|",
    ]
    for metric in metrics:
        figures = [model.metrics.get(metric) for model in models.values()]
        lines.append(f"| {metric} | " + " | ".join("–" if f is None else f"{f:.4f}" for f in figures) + " |")
    if report.champion is not None and report.champion_train_cutoff is not None:
        lines += ["", _champion(report.champion.model, report.champion_train_cutoff)]
    lines += ["", *(f"- {name}: {value:.4g}" for name, value in sorted(report.guardrails.items()))]
    lines.append(_refit(night, manifest))
    for key, said in (
        ("feature_service", "feature service"),
        ("lake_versions", "lake versions"),
        ("code_commit", "code commit"),
        ("seed", "seed"),
    ):
        if key in manifest:
            lines.append(f"- {said}: `{_text(manifest[key])}`")
    return "\n".join(lines)


def _champion(name: str, cutoff: datetime) -> str:
    return f"{name} was judged with what it had learned by {cutoff:%Y-%m-%d %H:%M}: no model is judged on what it knew."


def _refit(night: Night, manifest: dict[str, Any]) -> str:
    cutoff = manifest.get("train_cutoff")
    if night.refit:
        return f"- refit: after the evaluation the same recipe was trained on everything up to {cutoff or night.as_of}"
    return f"- trained up to {cutoff or 'the holdout'}: the very weights that were judged"


def _tags(settings: Settings, night: Night, manifest: dict[str, Any]) -> dict[str, str]:
    tags = {key: _text(value) for key, value in manifest.items() if key not in ("files", "format", "as_of")}
    tags["refit"] = str(night.refit).lower()
    tags["train_from"] = night.train_from
    tags[versions.RECIPE] = recipe.digest(settings, night)
    if start := trained_from(settings, night):
        tags["trained_from"] = start
    if run := os.environ.get("AIRFLOW_CTX_DAG_RUN_ID"):
        tags["airflow_run"] = run
    return tags


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
