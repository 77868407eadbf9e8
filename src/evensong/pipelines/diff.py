"""Two versions side by side: data, features, configuration, metrics, sample recommendations."""

from __future__ import annotations

from typing import Any

from evensong.errors import EvensongError
from evensong.evaluation.dossier import changes
from evensong.pipelines import dossier
from evensong.registry import tracking, versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import Night

DATA = ("as_of", "train_cutoff", "lake_versions")
FEATURES = ("feature_service", "features")


def run(settings: Settings, first: str, second: str) -> dict[str, Any]:
    """What differs from the first version to the second; `recommendations` for users of the second one's night.

    Raises:
        RegistryError: there is no such version.
    """
    one, two = versions.get(settings, first), versions.get(settings, second)
    recommendations, missing = _recommendations(settings, one, two)
    return {
        "first": one.version,
        "second": two.version,
        "data": _changes(one, two, DATA),
        "features": _changes(one, two, FEATURES),
        "configuration": [
            {"name": change.name, "first": change.champion, "second": change.challenger}
            for change in changes(tracking.params_of(settings, one.run_id), tracking.params_of(settings, two.run_id))
        ],
        "code_commit": {"first": one.tags.get("code_commit"), "second": two.tags.get("code_commit")},
        "metrics": {
            name: {"first": one.metrics.get(name), "second": two.metrics.get(name)}
            for name in sorted(one.metrics.keys() | two.metrics.keys())
        },
        "recommendations": recommendations,
        "missing": missing,
    }


def _recommendations(settings: Settings, one: ModelVersion, two: ModelVersion) -> tuple[list[dict[str, Any]], str]:
    try:
        shown = dossier.examples(settings, Night(as_of=two.as_of), two, one)
    except (EvensongError, OSError, ValueError) as error:
        return [], f"recommendations: {error}"
    return [
        {"user_id": example.user_id, "first": example.champion, "second": example.challenger} for example in shown
    ], ""


def _changes(one: ModelVersion, two: ModelVersion, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Changed tags; those that hold an object are taken apart, so that one table's version is one line."""
    before, after = (
        dossier.flat({name: version.tags[name] for name in names if name in version.tags}) for version in (one, two)
    )
    return [
        {"name": change.name, "first": change.champion, "second": change.challenger}
        for change in changes(before, after)
    ]
