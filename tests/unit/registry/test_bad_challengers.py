"""Six bad challengers, each stopped for the right reason, and the sound one that is promoted, on real bundles."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.taste_world import TasteWorld, make
from tests.unit.recommender.trained import write_bundle
from tests.unit.registry.conftest import write_materialized

from evensong.data import storage
from evensong.evaluation import slices
from evensong.models.config import RankerConfig
from evensong.models.saved import RankerWeights, TowerWeights, load_ranker, load_towers, save_ranker, save_towers
from evensong.pipelines import bundle, evaluate, evidence, gate, index, promote, register
from evensong.recommender.funnel import Recommender
from evensong.registry import aliases, versions
from evensong.registry import bundle as bundles
from evensong.retrieval.faiss_index import ItemIndex
from evensong.settings import IndexSettings, Settings
from evensong.types import Night

Spoil = Callable[[Path], None]
POLICY = Path("mlflow/promotion_policy.yaml").resolve()


@pytest.fixture(scope="module")
def world() -> TasteWorld:
    """Two tastes, and thirty of the users came three days before the holdout."""
    return make(num_users=110, shelf_size=40, num_days=12, newcomers=30)


@pytest.fixture(scope="module")
def trained(world: TasteWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learned the two tastes."""
    return write_bundle(tmp_path_factory.mktemp("trained"), world)


def settings_of(home: Path, empty_store: Path) -> Settings:
    (home / "mlflow").mkdir()
    # in a world of two tastes without any noise, nothing beats item-kNN; its own test stands in test_gate.py
    policy = home / "policy.yaml"
    policy.write_text(POLICY.read_text().replace("names: [popularity, item_knn]", "names: [popularity]"))
    shutil.copy(empty_store, home / "mlflow" / "mlflow.db")
    write_materialized(home)
    return Settings(
        home=home,
        registry={"policy_path": policy},  # type: ignore[arg-type]
        split={"holdout_days": 2},  # type: ignore[arg-type]
        retriever={"num_candidates": 15, "num_popular_candidates": 5},  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def settings(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_of(tmp_path_factory.mktemp("home"), empty_store)


@pytest.fixture(scope="module")
def night(settings: Settings, world: TasteWorld, trained: Path) -> Night:
    """The night of the challengers, after one whose model knew nothing became champion."""
    return after_champion(settings, world, trained, lambda place: forget(place / "retriever", place / "ranker", seed=0))


def after_champion(settings: Settings, world: TasteWorld, trained: Path, spoil: Spoil | None = None) -> Night:
    """A night that begins with a champion of the night before."""
    tonight = Night(as_of=world.as_of, refit=False)
    before = Night(as_of=world.cutoff, refit=False)
    for one in (before, tonight):
        world.write(Path(settings.run_uri(one.run_id, "training_set")))
        for name in ("validation", "leak_canary", "skew"):
            said = {"success": True, "max_difference": 0.0}
            storage.write_json(settings.run_uri(one.run_id, f"{name}.json"), said)
    folder = Path(settings.run_uri(before.run_id, "bundle"))
    shutil.copytree(trained, folder)
    if spoil is not None:
        spoil(folder)
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
        description="the night before",
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
    """The same answers through thousands of layers that change nothing, and hardly make the bundle larger."""
    ranker = load_ranker(folder)
    (width,), depth = ranker.config.hidden, 5000
    tensors = dict(ranker.tensors)
    for layer in range(1, depth):
        tensors[f"layers.{layer}.weight"] = np.eye(width, dtype=np.float32)
        tensors[f"layers.{layer}.bias"] = np.zeros(width, np.float32)
    values = ranker.config.model_dump() | {"hidden": (width,) * depth}
    save_ranker(folder, RankerWeights(RankerConfig(**values), tensors))


def judge(
    settings: Settings,
    night: Night,
    trained: Path,
    spoil: Spoil | None = None,
    *,
    indexed: Spoil | None = None,
    refit: Spoil | None = None,
) -> tuple[str, dict[str, Any]]:
    """The night from the trained parts on: index, evaluate, bundle, register, gate.

    `spoil` changes the models before they are judged, `indexed` their index, and `refit` the models that go into the
    bundle afterwards.
    """
    training_set = settings.run_uri(night.run_id, "training_set")
    place = Path(settings.run_uri(night.run_id))
    for part in ("retriever", "ranker"):
        shutil.rmtree(place / part, ignore_errors=True)
        shutil.copytree(trained / part, place / part)
    if spoil is not None:
        spoil(place)
    parts = [str(place / "retriever"), str(place / "ranker")]
    items = index.build(settings, night, training_set, parts[0])
    if indexed is not None:
        indexed(place)
    evaluation = evaluate.run(settings, night, training_set, *parts, items)
    if refit is not None:
        refit(place)
        items = index.build(settings, night, training_set, parts[0])
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
    assert (decision["promote"], decision["needs_review"]) == (False, False)


def test_shuffled_labels_are_stopped_by_popularity_or_the_champion(
    settings: Settings, night: Night, world: TasteWorld, tmp_path: Path
) -> None:
    events = world.events.with_columns(item_id=pl.col("item_id").shuffle(seed=3))
    other = write_bundle(tmp_path, dataclasses.replace(world, events=events))
    _, decision = judge(settings, night, other)
    assert set(failed(decision)) & {"above_popularity.recall_at_20", "better_than_champion.recall_at_20"}
    assert not decision["promote"]


def test_slow_bundle_is_stopped_by_its_own_latency(
    settings: Settings, night: Night, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "NUM_USERS", 15)
    _, decision = judge(settings, night, trained, lambda place: slow_down(place / "ranker"))
    assert failed(decision) == ["guardrail.latency_p99_seconds"]
    check = next(one for one in decision["checks"] if one["name"] == "guardrail.latency_p99_seconds")
    assert check["figure"] > check["bound"] >= 0.005


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


def test_trained_on_the_held_out_labels_waits_for_a_person(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = settings_of(tmp_path_factory.mktemp("leak"), empty_store)
    # whoever wants anything on a shelf alike leaves little to know: finding most of it, one must have seen it
    world = make(num_users=80, shelf_size=80, num_days=12, num_popular=1e9)
    night = after_champion(settings, world, write_bundle(tmp_path_factory.mktemp("sound"), world))
    leaking = write_bundle(tmp_path_factory.mktemp("leaking"), world, labels=world.examples(), epochs=50)
    version, decision = judge(settings, night, leaking)
    assert failed(decision) == ["plausible_gain.recall_at_20"]
    assert "too good to believe, as a leak would be; a person must look" in decision["reasons"][0]
    assert (decision["promote"], decision["needs_review"]) == (False, True)
    ended = promote.run(settings, night, version)
    assert (ended["champion"], ended["moved"], ended["reason"]) == ("1", False, "waits for a person's review")


def test_good_on_average_but_ruined_for_new_users_is_stopped_by_them(
    settings: Settings, night: Night, world: TasteWorld, tmp_path: Path
) -> None:
    # a join gone wrong: what users with a short history wanted is written down as the other shelf's
    labels = world.examples().filter(pl.col("part") != "holdout")
    swapped = pl.col("item_id").str.replace_many(["a", "b"], ["b", "a"])
    is_new = pl.col("num_interactions").fill_null(0) < slices.NEW_USER_EVENTS
    labels = labels.with_columns(item_id=pl.when(is_new).then(swapped).otherwise(pl.col("item_id")))
    _, decision = judge(settings, night, write_bundle(tmp_path, world, labels=labels))
    assert failed(decision) == ["slice.new_users"]
    assert "recall_at_20 of new_users: worse, change -0." in decision["reasons"][0]
    better = next(check for check in decision["checks"] if check["name"] == "better_than_champion.recall_at_20")
    assert better["passed"]


def test_refit_that_went_wrong_is_not_served_though_the_judged_model_is_good(
    settings: Settings, night: Night, trained: Path
) -> None:
    _, decision = judge(
        settings, night, trained, refit=lambda place: forget(place / "retriever", place / "ranker", seed=9)
    )
    assert failed(decision) == ["guardrail.bundle_recall_ratio"]


def test_refit_whose_scores_are_no_numbers_is_not_served(settings: Settings, night: Night, trained: Path) -> None:
    def diverge(place: Path) -> None:
        ranker = load_ranker(place / "ranker")
        broken = {name: np.full_like(value, np.nan) for name, value in ranker.tensors.items()}
        save_ranker(place / "ranker", RankerWeights(ranker.config, broken))

    _, decision = judge(settings, night, trained, refit=diverge)
    assert "input.bundle" in failed(decision)
    assert any("bundle: expected finite scores, got none for 110 of 110 users" in one for one in decision["reasons"])


def test_index_that_finds_other_items_is_measured_against_the_exact_one(
    settings: Settings, night: Night, trained: Path
) -> None:
    exact, _ = judge(settings, night, trained)
    best = versions.get(settings, exact).metrics
    assert best["exact_index_gain"] == 0.0

    def mix_up(place: Path) -> None:
        """A byte a number, the vectors in another order than the ids; it says of itself that all is well."""
        right = ItemIndex.load(place / "index")
        wrong = ItemIndex.build(right.vectors()[::-1], right.item_ids, IndexSettings(kind="quantized"))
        wrong.save(place / "index", index_recall=1.0)

    version, decision = judge(settings, night, trained, indexed=mix_up)
    found = versions.get(settings, version).metrics
    lost = best["challenger.recall_at_20"] - found["challenger.recall_at_20"]
    assert lost > 0.02
    assert found["exact_index_gain"] == pytest.approx(lost)
    assert "guardrail.exact_index_gain" in failed(decision)


def test_sound_challenger_is_promoted(settings: Settings, night: Night, trained: Path) -> None:
    version, decision = judge(settings, night, trained)
    assert (decision["promote"], failed(decision)) == (True, [])
    assert promote.run(settings, night, version)["champion"] == version
    page = versions.read_attached(settings, versions.get(settings, version), "dossier.html").decode()
    assert "apple thing" in page
    data = json.loads(versions.read_attached(settings, versions.get(settings, version), "dossier.json"))
    assert len(data["examples"]) == 10
    assert {row["name"] for row in data["fitness"]} >= {"latency_p99_seconds", "bundle_megabytes"}


def test_bundle_without_a_refit_finds_what_the_judged_model_found(
    settings: Settings, night: Night, trained: Path
) -> None:
    version, _ = judge(settings, night, trained)
    data = json.loads(versions.read_attached(settings, versions.get(settings, version), "dossier.json"))
    ratio = next(row for row in data["fitness"] if row["name"] == "bundle_recall_ratio")
    assert ratio["challenger"] == pytest.approx(1.0)


@pytest.mark.slow
def test_latency_is_measured_for_both_in_turn_and_does_not_count_who_else_is_busy(
    settings: Settings, night: Night, trained: Path
) -> None:
    model = Recommender.load(trained)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        ours, theirs = evidence.latencies(settings, night, model, model)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert ours.keys() == theirs.keys() == {"latency_p50_seconds", "latency_p99_seconds"}
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], rel=0.6)
