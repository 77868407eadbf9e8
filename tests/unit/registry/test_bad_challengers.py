"""Six bad challengers, each stopped for the right reason, and the sound one that is promoted, on real bundles."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.taste_world import TasteWorld, make
from tests.unit.recommender.trained import write_bundle

from evensong.data import storage
from evensong.evaluation import report as reports
from evensong.evaluation.gate import decide
from evensong.models.config import RankerConfig
from evensong.models.saved import RankerWeights, TowerWeights, load_ranker, load_towers, save_ranker, save_towers
from evensong.pipelines import bundle, evaluate, evidence, gate, index, promote, register
from evensong.registry import aliases, versions
from evensong.registry import bundle as bundles
from evensong.settings import Settings
from evensong.types import EvaluationReport, Frame, Night

Spoil = Callable[[Path], None]
POLICY = Path("mlflow/promotion_policy.yaml").resolve()


@pytest.fixture(scope="module")
def world() -> TasteWorld:
    return make(num_users=80, shelf_size=40, num_days=12)


@pytest.fixture(scope="module")
def trained(world: TasteWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learned the two tastes."""
    return write_bundle(tmp_path_factory.mktemp("trained"), world)


@pytest.fixture(scope="module")
def settings(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("home")
    (home / "mlflow").mkdir()
    # in a world of two tastes without any noise, nothing beats item-kNN; its own test stands in test_gate.py
    policy = home / "policy.yaml"
    policy.write_text(POLICY.read_text().replace("names: [popularity, item_knn]", "names: [popularity]"))
    shutil.copy(empty_store, home / "mlflow" / "mlflow.db")
    return Settings(
        home=home,
        registry={"policy_path": policy},  # type: ignore[arg-type]
        split={"holdout_days": 2},  # type: ignore[arg-type]
        retriever={"num_candidates": 15, "num_popular_candidates": 5},  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def night(settings: Settings, world: TasteWorld, trained: Path) -> Night:
    """The night of the challengers, after one whose model knew nothing became champion."""
    tonight = Night(as_of=world.as_of, refit=False)
    before = Night(as_of=world.cutoff, refit=False)
    for one in (before, tonight):
        world.write(Path(settings.run_uri(one.run_id, "training_set")))
        for name in ("validation", "leak_canary", "skew"):
            said = {"success": True, "max_difference": 0.0}
            storage.write_json(settings.run_uri(one.run_id, f"{name}.json"), said)
    folder = Path(settings.run_uri(before.run_id, "bundle"))
    shutil.copytree(trained, folder)
    forget(folder / "retriever", folder / "ranker", seed=0)
    bundles.write_manifest(
        folder, as_of=before.as_of, train_cutoff=before.as_of, seed=7, feature_service="recommender_v1"
    )
    champion = versions.register(
        settings,
        before,
        folder,
        loader_module=register.LOADER,
        input_example=pl.DataFrame({"user_id": ["u00"]}),
        output_example=pl.DataFrame({"item_id": ["a00"]}),
        metrics={},
        tags={},
        description="knows nothing",
    )
    aliases.move(settings, champion.version, actor="person:ada", reason="somebody must begin")
    return tonight


def forget(retriever: Path, ranker: Path, seed: int) -> None:
    """Random weights in place of what was learned."""
    rng = np.random.default_rng(seed)
    towers, ranked = load_towers(retriever), load_ranker(ranker)

    def drawn(tensors: Any) -> Any:
        return {name: rng.normal(0, 0.1, value.shape).astype(value.dtype) for name, value in sorted(tensors.items())}

    save_towers(retriever, TowerWeights(towers.config, towers.vocabularies, drawn(towers.tensors)))
    kept = {name: ranked.tensors[name] for name in ("mean", "std")}
    save_ranker(ranker, RankerWeights(ranked.config, drawn(ranked.tensors) | kept))


def slow_down(folder: Path) -> None:
    """The same answers through three wide layers that change nothing."""
    ranker = load_ranker(folder)
    (narrow,), wide = ranker.config.hidden, 2000
    tensors = dict(ranker.tensors)
    for layer, (a, b) in enumerate([(narrow, wide), (wide, wide), (wide, wide), (wide, narrow)], 1):
        tensors[f"layers.{layer}.weight"] = np.eye(b, a, dtype=np.float32)
        tensors[f"layers.{layer}.bias"] = np.zeros(b, np.float32)
    values = ranker.config.model_dump() | {"hidden": (narrow, wide, wide, wide, narrow)}
    save_ranker(folder, RankerWeights(RankerConfig(**values), tensors))


def judge(settings: Settings, night: Night, trained: Path, spoil: Spoil | None = None) -> tuple[str, dict[str, Any]]:
    """The night from the trained parts on: index, evaluate, bundle, register, gate."""
    training_set = settings.run_uri(night.run_id, "training_set")
    place = Path(settings.run_uri(night.run_id))
    for part in ("retriever", "ranker"):
        shutil.rmtree(place / part, ignore_errors=True)
        shutil.copytree(trained / part, place / part)
    if spoil is not None:
        spoil(place)
    parts = [str(place / "retriever"), str(place / "ranker")]
    items = index.build(settings, night, training_set, parts[0])
    evaluation = evaluate.run(settings, night, training_set, *parts, items)
    made = bundle.assemble(settings, night, training_set, *parts, items, evaluation)
    version = register.run(settings, night, made, evaluation)
    return version, gate.run(settings, night, version, evaluation)


def failed(decision: dict[str, Any]) -> list[str]:
    return [check["name"] for check in decision["checks"] if not check["passed"]]


def test_random_weights_are_stopped_by_popularity(settings: Settings, night: Night, trained: Path) -> None:
    def spoil(place: Path) -> None:
        forget(place / "retriever", place / "ranker", seed=8)

    _, decision = judge(settings, night, trained, spoil)
    assert "above_popularity.recall_at_20" in failed(decision)
    assert not decision["promote"]


def test_shuffled_labels_are_stopped_by_popularity_or_the_champion(
    settings: Settings, night: Night, world: TasteWorld, tmp_path: Path
) -> None:
    events = world.events.with_columns(item_id=pl.col("item_id").shuffle(seed=3))
    other = write_bundle(tmp_path, dataclasses.replace(world, events=events))
    _, decision = judge(settings, night, other)
    assert set(failed(decision)) & {"above_popularity.recall_at_20", "better_than_champion.recall_at_20"}
    assert not decision["promote"]


@pytest.mark.slow  # it measures latencies, which a busy machine blurs
def test_slow_bundle_is_stopped_by_its_own_latency(
    settings: Settings, night: Night, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "NUM_USERS", 15)
    _, decision = judge(settings, night, trained, lambda place: slow_down(place / "ranker"))
    assert failed(decision) == ["guardrail.latency_p99_seconds"]


def test_corrupted_file_is_stopped_and_named(settings: Settings, night: Night, trained: Path) -> None:
    def spoil(place: Path) -> None:
        (place / "ranker" / "note.txt").write_text("another bundle")

    version, _ = judge(settings, night, trained, spoil)
    model_id = versions.get(settings, version).model_id
    stored = next(Path(settings.model_artifacts).glob(f"models/{model_id}/artifacts/data/bundle/ranker/*.safetensors"))
    stored.write_bytes(stored.read_bytes()[:-1] + b"\1")
    shutil.rmtree(settings.place("serving", "bundles", f"v{version}"))
    versions.delete_tag(settings, version, "evidence_hash")
    decision = gate.run(settings, night, version, settings.run_uri(night.run_id, "evaluation.json"))
    assert "input.bundle" in failed(decision)
    assert any("ranker.safetensors: expected SHA-256" in reason for reason in decision["reasons"])


def relisted(settings: Settings, night: Night, change: Callable[[Frame, Frame], Frame]) -> list[str]:
    """The checks that fail when the challenger's lists are others, everything else being the last evaluation's."""
    policy = gate.read_policy(settings)
    place = settings.run_uri(night.run_id)
    judged = EvaluationReport.model_validate(storage.read_json(f"{place}/evaluation.json"))
    per_user = storage.read_frame(f"{place}/per_user.parquet")
    targets = storage.read_frame(f"{place}/training_set/targets.parquet")
    items = storage.read_frame(f"{place}/training_set/items_train.parquet")
    ours = per_user.filter(pl.col("model") == "challenger")
    lists = change(ours, targets)
    slices = ours.select("user_id", pl.col("^slice_.*$"))
    tastes = storage.read_frame(f"{place}/training_set/users_holdout.parquet")
    rows = reports.per_user("challenger", lists, targets, slices, items, tastes, recall_k=20, ndcg_k=10)
    spoiled = judged.model_copy(update={"challenger": reports.model_report("challenger", rows, lists, len(items), 20)})
    others = per_user.filter(pl.col("model") != "challenger")
    version = versions.get(settings, str(versions.listed(settings)[0].version))
    inputs = evidence.collect(settings, night, version, spoiled, policy)
    decision = decide(spoiled, policy, pl.concat([rows, others], how="diagonal"), inputs)
    return [check.name for check in decision.checks if not check.passed]


def test_leak_is_too_good_to_believe(settings: Settings, night: Night, trained: Path) -> None:
    judge(settings, night, trained)

    def knows_the_future(users: Frame, targets: Frame) -> Frame:
        return (
            targets.select("user_id", "item_id")
            .unique()
            .sort("user_id", "item_id")
            .with_columns(rank=pl.int_range(1, pl.len() + 1).over("user_id"))
        )

    assert "plausible.recall_at_20" in relisted(settings, night, knows_the_future)


def test_ruined_for_one_slice_is_stopped_by_that_slice(settings: Settings, night: Night, trained: Path) -> None:
    judge(settings, night, trained)
    place = settings.run_uri(night.run_id)
    per_user = storage.read_frame(f"{place}/per_user.parquet")
    newcomers = pl.col("user_id").str.slice(1).cast(pl.Int64) % 4 == 0
    storage.write_frame(f"{place}/per_user.parquet", per_user.with_columns(slice_new_users=newcomers))

    def forgets_newcomers(users: Frame, targets: Frame) -> Frame:
        most = targets.join(users.filter(~pl.col("slice_new_users")), on="user_id", how="semi")
        return (
            most.select("user_id", "item_id")
            .unique()
            .sort("user_id", "item_id")
            .with_columns(rank=pl.int_range(1, pl.len() + 1).over("user_id"))
        )

    stopped = relisted(settings, night, forgets_newcomers)
    assert "slice.new_users" in stopped
    assert not any(name.startswith(("above", "better")) for name in stopped)


def test_sound_challenger_is_promoted(settings: Settings, night: Night, trained: Path) -> None:
    version, decision = judge(settings, night, trained)
    assert (decision["promote"], failed(decision)) == (True, [])
    assert promote.run(settings, night, version)["champion"] == version
    page = versions.read_attached(settings, versions.get(settings, version), "dossier.html").decode()
    assert "apple thing" in page
    data = json.loads(versions.read_attached(settings, versions.get(settings, version), "dossier.json"))
    assert len(data["examples"]) == 10
    assert {row["name"] for row in data["fitness"]} >= {"latency_p99_seconds", "bundle_megabytes"}


def test_latency_of_a_bundle_is_measured_for_both_in_turn(settings: Settings, night: Night, trained: Path) -> None:
    ours, theirs = evidence.latencies(settings, night, trained, trained)
    assert ours.keys() == theirs.keys() == {"latency_p50_seconds", "latency_p99_seconds"}
    assert ours["latency_p50_seconds"] == pytest.approx(theirs["latency_p50_seconds"], rel=1.0)
