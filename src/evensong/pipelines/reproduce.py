"""A registered version made again: the lake as it was, the recipe and the seeds of then, today's code and machine."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.errors import RegistryError
from evensong.pipelines.bundle import judged_uri
from evensong.pipelines.recipe import COLUMNS, COLUMNS_DIGEST
from evensong.registry import bundle, retention, tracking, versions
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import EvaluationReport, Night

TABLES = ("interactions", "items", "users")
#: What a bundle computes with; the manifest beside it also names the commit and the libraries.
WEIGHTS = (".safetensors", ".faiss", ".onnx")
#: Figures that are no result of the training.
_NOT_COMPARED = ("champion.", "popularity.", "seconds.")


def run(settings: Settings, version: str, on_step: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Train the version anew beside the home's own data and compare metrics and weights.

    The lake is read as of the versions that the bundle names, the recipe comes from the run's parameters. On the same
    hardware, libraries and commit everything is equal, and `same` is true; `notes` says what else differs. Where the
    retention rule has collected the bundle and every file came out the same, the new one takes its place (`restored`).

    Raises:
        RegistryError: there is no such version, or its tags do not say what it was made from.
        StorageError: the lake no longer holds a table's version.
    """
    found = versions.get(settings, version)
    night, recipe = recipe_of(settings, found)
    say = on_step or (lambda name: None)
    say("lake")
    _copy_lake(settings, recipe, found)
    evaluation, made = _train(recipe, night, found.tags.get("compared_with"), say)
    say("compare")
    report = EvaluationReport.model_validate(storage.read_json(evaluation))
    metrics = _compared(found.metrics, tracking.report_metrics(report))
    then = retention.manifest_of(settings, found)
    now = bundle.read_manifest(Path(made))
    files = then["files"] if then else {}
    # Of a bundle that is gone without a trace the metrics remain to compare with.
    weights = {
        name: files.get(name) == now["files"].get(name)
        for name in sorted({*files, *now["files"]} if then else ())
        if name.endswith(WEIGHTS)
    }
    notes = notes_of(then, now)
    restored = False
    if not found.has_bundle:
        judged = Path(judged_uri(recipe, night)) if bundle.JUDGED_DIGEST in now else None
        restored = retention.restore(settings, found, Path(made), judged)
        notes.append(
            "the bundle had been collected; the new one is the same, and was put back"
            if restored
            else "the bundle had been collected; the new one is not the same, and was not put in its place"
        )
    return {
        "version": found.version,
        "as_of": night.as_of.isoformat(),
        "same": is_same(metrics, weights),
        "same_metrics": _are_same(metrics),
        "largest_difference": max((abs(row["then"] - row["now"]) for row in metrics.values()), default=0.0),
        "metrics": metrics,
        "weights": weights,
        "restored": restored,
        "notes": notes,
        "bundle": made,
    }


def is_same(metrics: dict[str, dict[str, float]], weights: dict[str, bool]) -> bool:
    """Whether every figure and every weight came out as it was; where there is nothing to compare, nothing is shown."""
    return (_are_same(metrics) or not metrics) and all(weights.values()) and bool(metrics or weights)


def _are_same(metrics: dict[str, dict[str, float]]) -> bool:
    return bool(metrics) and all(row["then"] == row["now"] for row in metrics.values())


def recipe_of(settings: Settings, version: ModelVersion) -> tuple[Night, Settings]:
    """The night and the settings that made the version; what they write lies in a place of its own, emptied now.

    Raises:
        RegistryError: the run's parameters are gone, or this release does not know one of them.
    """
    params = {name: _plain(text) for name, text in tracking.params_of(settings, version.run_id).items()}
    parts: dict[str, dict[str, Any]] = {}
    for name, value in sorted(params.items()):
        part, _, key = name.partition(".")
        parts.setdefault(part, {})[key] = value
    if "night" not in parts:
        raise RegistryError(f"version {version.version}: expected the night's parameters on its run, found none")
    place = Path(settings.place("reproduce", f"v{version.version}"))
    shutil.rmtree(place, ignore_errors=True)
    update: dict[str, Any] = {
        "lake_uri": str(place / "lake"),
        "artifacts_uri": str(place / "artifacts"),
        "online_store_uri": str(place / "online.db"),
        "feast_registry_uri": str(place / "registry.db"),
    }
    try:
        for part, values in parts.items():
            if part in Settings.model_fields:
                section = getattr(settings, part)
                update[part] = type(section).model_validate(section.model_dump() | values)
        night = Night.model_validate(parts["night"])
        if night.train_from == "champion":
            # of then; where there was none the weights began at random
            night = night.model_copy(update={"train_from": version.tags.get("trained_from", "scratch")})
    except ValueError as error:
        raise RegistryError(
            f"version {version.version}: its parameters are not this release's: {error}; "
            f"check out the commit {version.tags.get('code_commit', 'that its tags name')} first"
        ) from error
    recipe = settings.model_copy(update=update)
    return night, _with_columns(recipe, version, params.get(COLUMNS_DIGEST), place)


def _with_columns(recipe: Settings, version: ModelVersion, digest: Any, place: Path) -> Settings:
    """The recipe with the columns' file of then, from the run's artifacts: the path may hold another one today.

    Raises:
        RegistryError: the artifact is gone, or was edited.
    """
    if digest is None:  # a night without a file, or of a release that kept its path alone
        return recipe
    place.mkdir(parents=True, exist_ok=True)
    path = tracking.download(recipe, f"runs:/{version.run_id}/{COLUMNS}", place)
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != digest:
        raise RegistryError(
            f"version {version.version}: its columns should hash to {digest[:12]}…, found {found[:12]}…; "
            f"the artifact {COLUMNS} of its run was edited"
        )
    return recipe.model_copy(update={"features": recipe.features.model_copy(update={"columns_path": path})})


def _copy_lake(settings: Settings, recipe: Settings, version: ModelVersion) -> None:
    of_then = versions.lake_versions(version)
    if not of_then.keys() & set(TABLES):
        raise RegistryError(f"version {version.version}: its tags name no versions of the lake's tables")
    source, target = Lake(settings.lake), Lake(recipe.lake)
    for table in TABLES:
        if table in of_then:
            target.append_new(table, source.read(table, version=of_then[table]))


def _train(recipe: Settings, night: Night, against: str | None, say: Callable[[str], None]) -> tuple[str, str]:
    from evensong.pipelines import bundle as assembling
    from evensong.pipelines import evaluate, features, index, train, training_set

    say("features")
    features.build(recipe, night)
    say("training set")
    examples = training_set.build(recipe, night)
    say("train")
    retriever = train.retriever(recipe, night, examples)
    ranker = train.ranker(recipe, night, examples, retriever)
    items = index.build(recipe, night, examples, retriever)
    say("evaluate")
    evaluation = evaluate.run(recipe, night, examples, retriever, ranker, items, against)
    say("bundle")
    return evaluation, assembling.assemble(recipe, night, examples, retriever, ranker, items, evaluation)


def _compared(then: dict[str, float], now: dict[str, float]) -> dict[str, dict[str, float]]:
    names = [name for name in sorted(then.keys() & now.keys()) if not name.startswith(_NOT_COMPARED)]
    return {name: {"then": then[name], "now": now[name]} for name in names}


def notes_of(then: dict[str, Any] | None, now: dict[str, Any]) -> list[str]:
    """What else differs between the two manifests: commit, libraries, features and their definitions."""
    if then is None:
        return ["the bundle of then is gone with its manifest, so weights cannot be compared"]
    notes = []
    for name in ("code_commit", "libraries", "feature_service"):
        if name in then and then[name] != now.get(name):
            notes.append(f"{name}: {json.dumps(then[name])} then, {json.dumps(now.get(name))} now")
    return notes + _feature_notes(then.get("features") or {}, now.get("features") or {})


def _feature_notes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Where the two dictionaries of features differ."""
    notes = []
    if then.get("dictionary_version") != now.get("dictionary_version"):
        versions_of = (json.dumps(one.get("dictionary_version")) for one in (then, now))
        notes.append("feature dictionary: {} then, {} now".format(*versions_of))
    before, after = then.get("versions", {}), now.get("versions", {})
    for word, names in (
        ("defined differently", [name for name in before if name in after and before[name] != after[name]]),
        ("not there now", before.keys() - after.keys()),
        ("not there then", after.keys() - before.keys()),
    ):
        if names:
            notes.append(f"features {word}: {', '.join(sorted(names))}")
    return notes


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
