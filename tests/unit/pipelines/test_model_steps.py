"""The steps from training set to bundle, on a real lake, feature store and registry, in a world of two tastes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from tests.taste_world import START, TasteWorld, make

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.errors import BundleError, NothingToLearnError
from evensong.pipelines import bundle, evaluate, features, index, recipe, register, reproduce, train, training_set
from evensong.recommender.funnel import Recommender
from evensong.registry import aliases, retention, versions
from evensong.registry import bundle as bundles
from evensong.registry.bundle import JUDGED_DIGEST, fetch_judged, verify
from evensong.settings import Settings, load_settings
from evensong.types import TIMESTAMP, EvaluationReport, Night

RECIPE = {
    "split": {"holdout_days": 2.0, "ranker_days": 3.0, "min_holdout_users": 0},
    "retriever": {"dimension": 16, "epochs": 8, "batch_size": 64, "learning_rate": 0.01}
    | {"num_uniform_negatives": 16, "num_candidates": 20, "num_popular_candidates": 8},
    "ranker": {"hidden": (8,), "num_negatives": 8, "epochs": 3},
}


@dataclass(frozen=True)
class Steps:
    """A night's settings and what each step returned."""

    settings: Settings
    night: Night
    training_set: str
    retriever: str
    ranker: str
    index: str
    evaluation: str

    @property
    def report(self) -> EvaluationReport:
        return EvaluationReport.model_validate(storage.read_json(self.evaluation))

    def assemble(self) -> Path:
        uris = (self.training_set, self.retriever, self.ranker, self.index, self.evaluation)
        return Path(bundle.assemble(self.settings, self.night, *uris))


def fill_lake(settings: Settings, world: TasteWorld) -> None:
    lake = Lake(settings.lake)
    began = pl.lit(START, TIMESTAMP)
    items = world.items.select(
        "item_id", "title", "category_path", "price", event_timestamp=began, created_timestamp=began
    )
    lake.append_new("items", items)
    events = world.events.with_columns(event_type=pl.lit("view"), created_timestamp=pl.col("event_timestamp"))
    lake.append_new("interactions", events)


def run(settings: Settings, night: Night) -> Steps:
    features.build(settings, night)
    examples = training_set.build(settings, night)
    retriever = train.retriever(settings, night, examples)
    ranker = train.ranker(settings, night, examples, retriever)
    items = index.build(settings, night, examples, retriever)
    evaluation = evaluate.run(settings, night, examples, retriever, ranker, items)
    return Steps(settings, night, examples, retriever, ranker, items, evaluation)


@pytest.fixture(scope="module")
def world() -> TasteWorld:
    return make()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, world: TasteWorld) -> Settings:
    settings = load_settings(home=tmp_path_factory.mktemp("home"), **RECIPE)
    fill_lake(settings, world)
    return settings


@pytest.fixture(scope="module")
def first(home: Settings, world: TasteWorld) -> Steps:
    return run(home, Night(as_of=world.as_of - timedelta(days=1)))


@pytest.fixture(scope="module")
def first_bundle(first: Steps) -> Path:
    return first.assemble()


def contents(folder: str | Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_the_funnel_beats_popularity_where_tastes_differ(first: Steps) -> None:
    report = first.report
    assert report.num_users == 40
    for metric in ("recall_at_20", "ndcg_at_10"):
        assert report.challenger.metrics[metric] > report.baselines["popularity"].metrics[metric] + 0.1
    assert report.guardrails["index_recall"] == 1.0
    assert 0 < report.challenger.metrics["coverage"] <= 1
    assert report.window_start == first.night.as_of - timedelta(days=2)


def test_attributes_of_users_and_of_wanted_items_are_slices_and_a_misspelled_one_is_known(
    first: Steps, world: TasteWorld, tmp_path: Path
) -> None:
    shutil.copytree(first.settings.home, tmp_path / "home")
    names = ("country", "item.brand", "contry")
    home = load_settings(home=tmp_path / "home", evaluation={"slice_attributes": names}, **RECIPE)
    began, later = (pl.lit(moment, TIMESTAMP) for moment in (START, START + timedelta(days=1)))
    ids = sorted(world.events["user_id"].unique())
    countries = ["DE" if number < 10 else None if number < 15 else "FR" for number in range(len(ids))]
    users = pl.DataFrame(
        {"user_id": ids, "attributes": [json.dumps({"country": country} if country else {}) for country in countries]}
    )
    lake = Lake(home.lake)
    lake.append_new("users", users.with_columns(event_timestamp=began, created_timestamp=began))
    items = world.items.select("item_id", "title", "category_path", "price")
    attributes = pl.Series("attributes", [json.dumps({"brand": item_id[0]}) for item_id in items["item_id"]])
    lake.append_new("items", items.with_columns(attributes, event_timestamp=later, created_timestamp=later))
    uris = (first.training_set, first.retriever, first.ranker, first.index)
    report = EvaluationReport.model_validate(storage.read_json(evaluate.run(home, first.night, *uris)))
    assert report.slice_attributes == {"country": 35, "item.brand": 40, "contry": 0}
    assert {name for name in report.challenger.slices if "=" in name} == {
        "country=DE",
        "country=FR",
        "item.brand=a",
        "item.brand=b",
    }
    assert report.per_user_uri is not None
    rows = storage.read_frame(report.per_user_uri).filter(pl.col("model") == "challenger")
    assert rows["slice_country=DE"].sum() == 10
    # every user wants the items of one shelf
    is_even = rows["user_id"].str.slice(1).cast(pl.Int64) % 2 == 0
    assert rows["slice_item.brand=a"].equals(is_even.alias("slice_item.brand=a"))


def test_per_user_rows_are_what_the_means_are_of(first: Steps) -> None:
    report = first.report
    assert report.per_user_uri is not None
    rows = storage.read_frame(report.per_user_uri)
    assert rows.group_by("model").len().sort("model").rows() == [
        ("challenger", 40),
        ("item_knn", 40),
        ("popularity", 40),
    ]
    mean = rows.filter(pl.col("model") == "challenger")["recall_at_20"].mean()
    assert mean == pytest.approx(report.challenger.metrics["recall_at_20"])
    assert {"slice_new_users", "slice_new_items", "slice_long_tail"} <= set(rows.columns)


def test_training_again_replaces_the_folder_with_the_same_bytes(first: Steps) -> None:
    before = contents(first.retriever), contents(first.ranker), contents(first.index)
    train.retriever(first.settings, first.night, first.training_set)
    train.ranker(first.settings, first.night, first.training_set, first.retriever)
    index.build(first.settings, first.night, first.training_set, first.retriever)
    assert (contents(first.retriever), contents(first.ranker), contents(first.index)) == before


def test_no_checkpoint_is_left(first: Steps) -> None:
    assert not storage.list_files(first.settings.run_uri(first.night.run_id, "checkpoints"))


def test_the_bundle_holds_what_the_contract_names(first: Steps, first_bundle: Path) -> None:
    manifest = verify(first_bundle)
    assert set(manifest["files"]) == {
        "retriever/config.json",
        "retriever/towers.safetensors",
        "retriever/vocabulary.json",
        *(f"retriever/columns/{table}/columns.json" for table in ("users", "items", "moving")),
        *(f"retriever/columns/{table}/columns.safetensors" for table in ("users", "items", "moving")),
        "ranker/config.json",
        "ranker/ranker.safetensors",
        "index/items.faiss",
        "index/item_ids.json",
        "index/index.json",
        "popularity.json",
        "items.parquet",
    }
    assert manifest["train_cutoff"] == first.night.as_of.isoformat()
    assert manifest["feature_service"] == "recommender_v1"
    assert manifest["lake_versions"]["interactions"] >= 0
    items = pl.read_parquet(first_bundle / "items.parquet")
    assert items["item_id"].to_list() == Recommender.load(first_bundle).item_ids
    assert {"title", "category_path"} <= set(items.columns)


def test_the_refit_saw_what_the_judged_model_had_not(first: Steps, first_bundle: Path) -> None:
    judged = Recommender.of_parts(
        Path(first.retriever), Path(first.ranker), Path(first.index), Recommender.load(first_bundle).popularity
    )
    assert len(contents(first.retriever)) == 2 * len(contents(first_bundle / "retriever"))
    assert contents(first_bundle / "retriever") != {
        name: content for name, content in contents(first.retriever).items() if not name.startswith("base/")
    }
    assert judged.item_ids == Recommender.load(first_bundle).item_ids


def test_without_the_refit_the_bundle_holds_the_very_weights_that_were_judged(first: Steps) -> None:
    night = first.night.model_copy(update={"refit": False})
    folder = Path(Steps(first.settings, night, *list(vars(first).values())[2:]).assemble())
    assert (folder / "retriever/towers.safetensors").read_bytes() == (
        Path(first.retriever) / "towers.safetensors"
    ).read_bytes()
    assert (
        json.loads((folder / "manifest.json").read_bytes())["train_cutoff"]
        == (night.as_of - timedelta(days=2)).isoformat()
    )
    first.assemble()


@pytest.fixture(scope="module")
def second(first: Steps, first_bundle: Path, world: TasteWorld) -> Steps:
    version = register.run(first.settings, first.night, str(first_bundle), first.evaluation)
    aliases.move(first.settings, version, actor="person:test", reason="the first champion")
    night = Night(as_of=world.as_of, train_from="champion")
    return run(first.settings, night)


def test_nobody_is_judged_on_what_the_champion_was_trained_on(first: Steps, second: Steps) -> None:
    report = second.report
    # the champion was refitted up to the first night's as_of, a day after the second night's holdout begins
    assert first.night.as_of > second.night.as_of - timedelta(days=2)
    assert report.window_start == second.night.as_of - timedelta(days=2)
    assert report.champion_train_cutoff == first.night.as_of - timedelta(days=2)
    assert report.champion is not None
    assert report.champion.model == "champion v1"
    assert report.champion_version == "1"
    assert report.per_user_uri is not None
    rows = storage.read_frame(report.per_user_uri)
    users = {model: set(part["user_id"]) for (model,), part in rows.group_by("model")}
    assert users["challenger"] == users["champion v1"] == users["popularity"]
    assert len(users["challenger"]) == report.num_users


def test_where_the_judged_champion_was_not_kept_only_what_it_had_not_seen_counts(first: Steps, second: Steps) -> None:
    kept = versions.get(second.settings, "1").tags[JUDGED_DIGEST]
    versions.delete_tag(second.settings, "1", JUDGED_DIGEST)
    uris = (second.training_set, second.retriever, second.ranker, second.index)
    try:
        evaluate.run(second.settings, second.night, *uris)
        assert second.report.window_start == second.report.champion_train_cutoff == first.night.as_of
    finally:
        versions.set_tags(second.settings, "1", {JUDGED_DIGEST: kept})
        evaluate.run(second.settings, second.night, *uris)


def test_a_judged_champion_of_other_bytes_is_refused(second: Steps) -> None:
    kept = versions.get(second.settings, "1").tags[JUDGED_DIGEST]
    versions.set_tags(second.settings, "1", {JUDGED_DIGEST: "0" * 64})
    try:
        with pytest.raises(BundleError, match="expected the bundle 0000"):
            fetch_judged(second.settings, "1")
    finally:
        versions.set_tags(second.settings, "1", {JUDGED_DIGEST: kept})


def test_a_warm_start_reaches_a_champions_quality(second: Steps) -> None:
    report = second.report
    assert report.champion is not None
    popular = report.baselines["popularity"].metrics["recall_at_20"]
    assert report.challenger.metrics["recall_at_20"] > popular
    assert report.champion.metrics["recall_at_20"] > popular


def test_a_rerun_judges_the_same(second: Steps) -> None:
    uris = (second.training_set, second.retriever, second.ranker, second.index)
    before = Path(second.evaluation).read_bytes()
    assert evaluate.run(second.settings, second.night, *uris) == second.evaluation
    assert Path(second.evaluation).read_bytes() == before


def test_another_seed_of_a_night_is_judged_beside_its_champion_of_before_the_refit(first: Steps, second: Steps) -> None:
    uris = (first.training_set, first.retriever, first.ranker, first.index)
    other = first.night.model_copy(update={"seed": 8, "train_from": "champion"})
    assert recipe.rival(first.settings, first.night) is None
    rival = recipe.rival(first.settings, other)
    assert rival is not None
    assert rival.version == "1"
    start = train.cutoff_of(first.settings, other, final=False)
    directory, cutoff = train.champion_models(first.settings, "1", start)
    # the refit of the same night has learned the held-out days, what was judged beside it has not
    assert (directory.parent.name, cutoff) == ("judged", start)
    before = Path(first.evaluation).read_bytes()
    try:
        evaluate.run(first.settings, other, *uris)
        report = first.report
        assert (report.champion_version, report.champion_train_cutoff, report.window_start) == ("1", start, start)
        assert report.champion is not None
        # the same judged models: the same lists
        assert report.champion.metrics == report.challenger.metrics
    finally:
        evaluate.run(first.settings, first.night, *uris)
    assert Path(first.evaluation).read_bytes() == before


def test_another_seed_cannot_be_compared_with_a_champion_that_has_learned_every_held_out_day(
    first: Steps, second: Steps
) -> None:
    uris = (first.training_set, first.retriever, first.ranker, first.index)
    before, kept = Path(first.evaluation).read_bytes(), versions.get(first.settings, "1").tags[JUDGED_DIGEST]
    versions.delete_tag(first.settings, "1", JUDGED_DIGEST)
    try:
        with pytest.raises(BundleError, match="version 1: expected the models that were judged beside it"):
            evaluate.run(first.settings, first.night.model_copy(update={"seed": 8}), *uris)
    finally:
        versions.set_tags(first.settings, "1", {JUDGED_DIGEST: kept})
    assert Path(first.evaluation).read_bytes() == before


def test_more_users_than_may_be_judged_are_drawn_by_seed(first: Steps) -> None:
    few = first.settings.model_copy(
        update={"evaluation": first.settings.evaluation.model_copy(update={"max_users": 7})}
    )
    drawn = []
    for _ in range(2):
        uri = evaluate.run(few, first.night, first.training_set, first.retriever, first.ranker, first.index)
        report = EvaluationReport.model_validate(storage.read_json(uri))
        assert report.num_users == 7
        assert report.per_user_uri is not None
        drawn.append(storage.read_frame(report.per_user_uri))
    assert drawn[0].equals(drawn[1])
    evaluate.run(first.settings, first.night, first.training_set, first.retriever, first.ranker, first.index)


def test_a_refit_continues_from_the_champion_that_the_judged_model_began_with(first: Steps, second: Steps) -> None:
    assert train.trained_from(first.settings, first.night) is None
    assert train.trained_from(second.settings, second.night) == "1"
    named = second.night.model_copy(update={"train_from": "1"})
    before = contents(second.retriever)
    train.retriever(second.settings, named, second.training_set)
    assert contents(second.retriever) == before


def test_a_collected_version_is_made_again_from_the_champion_of_then_and_put_back(first: Steps, second: Steps) -> None:
    home = second.settings
    version = register.run(home, second.night, str(second.assemble()), second.evaluation)
    assert versions.get(home, version).tags["trained_from"] == "1"
    # another champion of the first night stands by now, and it would be another start
    night = first.night.model_copy(update={"refit": False})
    other = Steps(home, night, *list(vars(first).values())[2:]).assemble()
    late = register.run(home, night, str(other), first.evaluation)
    aliases.move(home, late, actor="person:test", reason="another one")
    few = home.model_copy(update={"registry": home.registry.model_copy(update={"keep_versions": 1})})
    assert {one.version for one in retention.collect(few, dry_run=False) if one.action == "collect"} == {version}
    answer = reproduce.run(home, version)
    assert answer["same"], answer
    assert answer["restored"]
    assert all(answer["weights"].values())
    assert any("put back" in note for note in answer["notes"])
    assert verify(bundles.fetch(home, version), versions.get(home, version).digest)
    assert fetch_judged(home, version)


def test_one_event_a_user_is_nothing_to_learn_from(tmp_path: Path, world: TasteWorld) -> None:
    settings = load_settings(home=tmp_path, **RECIPE)
    firsts = replace(world, events=world.events.unique("user_id", keep="first", maintain_order=True))
    fill_lake(settings, firsts)
    night = Night(as_of=world.as_of)
    features.build(settings, night)
    examples = training_set.build(settings, night)
    with pytest.raises(NothingToLearnError, match="history"):
        train.retriever(settings, night, examples)
