"""What was served can be replayed and explained: no skew where there is none, every skew where there is one."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from evensong.data import storage
from evensong.errors import RequestNotFoundError, StorageError
from evensong.monitoring import request_log
from evensong.pipelines import explain, features, skew
from evensong.registry import aliases, versions
from evensong.settings import Settings
from evensong.types import Night

Serve = Callable[..., AbstractContextManager[httpx.Client]]
NIGHT = Night(as_of=datetime(2026, 1, 16, tzinfo=UTC))


def beside(world: Any, home: Path) -> Settings:
    """The world's data and registry, with a request log and run folders of its own."""
    old: Settings = world.settings
    return old.model_copy(
        update={
            "home": home,
            "lake_uri": old.lake,
            "online_store_uri": old.online_store,
            "feast_registry_uri": old.feast_registry,
            "mlflow_tracking_uri": old.tracking,
            "mlflow_artifacts_uri": old.model_artifacts,
            "artifacts_uri": str(home / "artifacts"),
        }
    )


@pytest.fixture(scope="module")
def served(world: Any, serve: Serve, tmp_path_factory: pytest.TempPathFactory, wait_for: Any) -> Settings:
    """A few real requests, answered over HTTP and logged."""
    settings = beside(world, tmp_path_factory.mktemp("served"))
    world.promote(world.second)
    # the ledger lies in the home that moved the alias
    (settings.home / "mlflow").mkdir(parents=True)
    (settings.home / "mlflow" / "ledger.jsonl").write_bytes(
        (world.settings.home / "mlflow" / "ledger.jsonl").read_bytes()
    )
    with serve(settings) as client:
        for number in range(6):
            client.get("/recommend", params={"user_id": f"au{number}"}, headers={"x-request-id": f"asked-{number}"})
        body = {"user_id": "bu3", "k": 3, "exclude_item_ids": ["bi0"], "context": {"recent_item_ids": ["ai1", "ai2"]}}
        client.post("/recommend", json=body, headers={"x-request-id": "asked-in-session"})
        client.get("/recommend?user_id=nobody", headers={"x-request-id": "asked-by-nobody"})
        wait_for(lambda: len(list(request_log.read(settings))) == 8)
    return settings


def test_served_features_and_scores_are_the_offline_ones(served: Settings) -> None:
    told = storage.read_json(skew.run(served, NIGHT))
    assert (told["success"], told["num_requests"], told["notes"]) == (True, 8, [])
    assert told["max_difference"] <= 1e-6
    names = {one["name"] for one in told["largest"]}
    assert {"recent_item_ids", "num_events_7d", "item_events_total", "price", skew.SCORE} <= names
    scores = next(one for one in told["largest"] if one["name"] == skew.SCORE)
    assert scores["num_values"] == 6 * 5 + 3
    assert "served and offline differ by" in told["message"]


def test_requests_of_before_a_later_night_are_compared_with_the_features_of_then(served: Settings) -> None:
    later = Night(as_of=NIGHT.as_of + timedelta(days=40))
    features.build(served, later)
    assert storage.read_json(skew.run(served, NIGHT))["success"] is True


@pytest.mark.parametrize(
    ("feature", "spoil"),
    [
        ("num_interactions", lambda record: record.user_features.update(num_interactions=99)),
        ("num_events_7d", lambda record: record.user_features.update(num_events_7d=None)),
        ("recent_item_ids", lambda record: record.user_features["recent_item_ids"].reverse()),
        ("top_category_shares", lambda record: record.user_features.update(top_category_shares=[0.998])),
        ("item_events_30d", lambda record: record.items[0]["features"].update(item_events_30d=7)),
        ("title", lambda record: record.items[-1]["features"].update(title="another")),
        (skew.SCORE, lambda record: record.items[0].update(score=record.items[0]["score"] + 0.01)),
        # what the model reads and one side does not have at all
        ("num_events_1d", lambda record: record.user_features.pop("num_events_1d")),
        ("item_users_30d", lambda record: record.items[2]["features"].pop("item_users_30d")),
        ("arrival_seconds", lambda record: record.items[0].update(features=None)),
        # an item that the model would not have answered offline: the user has seen it
        (skew.SCORE, lambda record: record.items[0].update(item_id=record.user_features["recent_item_ids"][-1])),
        (skew.HIDDEN, lambda record: vars(record).update(num_hidden=3)),
    ],
)
def test_any_value_that_differs_is_found(served: Settings, feature: str, spoil: Callable[[Any], None]) -> None:
    record = request_log.find(served, "asked-2")
    assert record is not None
    spoil(record)
    found = skew.compare(served, [record]).found
    assert found[0].name == feature
    assert found[0].max_difference > served.quality.skew_tolerance
    assert found[0].request_id == "asked-2"


def test_value_that_the_online_store_garbles_keeps_the_night_from_promoting(
    world: Any, serve: Serve, tmp_path: Path, wait_for: Any
) -> None:
    """The store itself is spoiled: user au1 is given the bytes of user bu7."""
    settings = beside(world, tmp_path)
    spoiled = tmp_path / "online.db"
    with sqlite3.connect(world.settings.online_store) as source, sqlite3.connect(spoiled) as target:
        source.backup(target)
        ours, theirs = (
            target.execute(
                "select distinct entity_key from evensong_user_history where instr(entity_key, ?)", (name.encode(),)
            ).fetchone()[0]
            for name in ("au1", "bu7")
        )
        target.execute(
            "update evensong_user_history set value = (select other.value from evensong_user_history as other where "
            "other.entity_key = ? and other.feature_name = evensong_user_history.feature_name) where entity_key = ?",
            (theirs, ours),
        )
    settings = settings.model_copy(update={"online_store_uri": str(spoiled)})
    world.promote(world.second)
    with serve(settings) as client:
        client.get("/recommend?user_id=au1")
        wait_for(lambda: len(list(request_log.read(settings))) == 1)
    told = storage.read_json(skew.run(settings, NIGHT))
    assert told["success"] is False
    assert told["max_difference"] >= 1.0
    assert "recent_item_ids" in told["message"]


def test_feature_that_the_offline_path_lost_is_found(served: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from evensong.features.offline import FeatureReader

    right = FeatureReader.features_of
    monkeypatch.setattr(
        FeatureReader, "features_of", lambda *asked: [name for name in right(*asked) if name != "num_events_7d"]
    )
    told = storage.read_json(skew.run(served, NIGHT))
    assert told["success"] is False
    assert "num_events_7d differs by 1" in told["message"]
    assert "offline absent" in told["message"]


def test_nothing_served_yet_is_no_skew(tmp_path: Path) -> None:
    told = storage.read_json(skew.run(Settings(home=tmp_path), NIGHT))
    assert (told["success"], told["max_difference"], told["num_requests"]) == (True, 0.0, 0)
    assert told["message"].startswith("no request was answered")


@pytest.mark.parametrize("values", [{"quality": {"skew_requests": 0}}, {"serving": {"request_log_sample": 0}}])
def test_no_setting_turns_the_check_off(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="greater than"):
        Settings(home=tmp_path, **values)


def test_check_that_breaks_leaves_no_earlier_pass_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path)
    place = skew.run(settings, NIGHT)
    assert storage.read_json(place)["success"] is True

    def broken(*_: object) -> None:
        raise RuntimeError("the machine is out of memory")

    monkeypatch.setattr(skew, "compare", broken)
    with pytest.raises(RuntimeError):
        skew.run(settings, NIGHT)
    assert not storage.exists(place)


def test_log_that_cannot_be_read_proves_nothing(served: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(uri: str) -> bytes:
        raise StorageError(f"{uri}: permission denied")

    monkeypatch.setattr(storage, "read_bytes", unreadable)
    monkeypatch.setattr(storage, "write_json", lambda uri, value: json.dumps(value))
    told = json.loads(skew.run(served, NIGHT))
    assert told["success"] is False
    assert "the request log cannot be read" in told["message"]


def test_requests_that_cannot_be_replayed_prove_nothing(served: Settings, tmp_path: Path) -> None:
    lost = served.model_copy(update={"lake_uri": str(tmp_path / "empty")})
    told = storage.read_json(skew.run(lost, NIGHT))
    assert told["success"] is False
    assert "8 requests prove too little: 8 requests of 2026-01-16" in told["message"]


def test_requests_answered_without_features_prove_nothing(served: Settings) -> None:
    records = request_log.newest(served, 8)
    blind = [record.model_copy(update={"user_features": None}) for record in records]
    assert skew.compare(served, blind).failures == [
        "8 of 8 requests were answered without features: the online store was away"
    ]
    some = skew.compare(served, [*blind[:3], *records[3:]])
    assert some.failures == []
    assert some.notes == ["3 of 8 requests were answered without features: the online store was away"]
    assert some.found[0].max_difference <= 1e-6


def test_scores_that_cannot_be_asked_for_again_prove_nothing(served: Settings) -> None:
    records = [record for record in request_log.newest(served, 8) if record.source == "model"]
    unknown = [record.model_copy(update={"model_version": "9999"}) for record in records]
    compared = skew.compare(served, unknown)
    assert "7 requests of version 9999 keep their scores unchecked" in compared.failures[0]
    # what the store holds is compared all the same, by this release's own list
    assert {skew.HIDDEN, "num_interactions", "title"} <= {one.name for one in compared.found}


def test_bundle_that_went_by_the_retention_rule_is_no_fault(
    world: Any, served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evensong.errors import RegistryError
    from evensong.registry import bundle, versions

    fetch, get = bundle.fetch, versions.get

    def collected(settings: Settings, version: str) -> Path:
        if version == world.first:
            raise RegistryError(f"model version {version}: its bundle was collected")
        return fetch(settings, version)

    monkeypatch.setattr(bundle, "fetch", collected)
    monkeypatch.setattr(
        versions,
        "get",
        lambda settings, version: get(settings, version).model_copy(
            update={"tags": {"collected": "2026-01-20"} if version == world.first else {}}
        ),
    )
    newest, *others = request_log.newest(served, 8)
    older = [record.model_copy(update={"model_version": world.first}) for record in others]
    compared = skew.compare(served, [newest, *older])
    assert (compared.failures, len(compared.notes)) == ([], 1)
    # the bundle of what answered last is there, whatever the rule
    compared = skew.compare(served, older)
    assert "keep their scores unchecked" in compared.failures[0]


@pytest.fixture
def apart(world: Any, tmp_path: Path) -> Settings:
    """The world with a lake and an online store of its own."""
    old = beside(world, tmp_path)
    shutil.copytree(world.settings.lake, tmp_path / "lake")
    own = {"lake_uri": str(tmp_path / "lake"), "online_store_uri": str(tmp_path / "online.db")}
    settings = old.model_copy(update=own | {"feast_registry_uri": str(tmp_path / "registry.db")})
    (tmp_path / "lake" / "materialized.json").unlink()
    features.build(settings, NIGHT)
    features.materialize(settings, NIGHT)
    world.promote(world.second)
    return settings


@pytest.mark.parametrize(
    "views",
    [
        pytest.param(["user_activity", "item_content"], marks=pytest.mark.slow),
        pytest.param(["item_popularity"], marks=pytest.mark.slow),
        pytest.param(["user_seen"], marks=pytest.mark.slow),
    ],
)
def test_store_that_is_just_being_filled_is_no_skew(
    apart: Settings, serve: Serve, wait_for: Any, views: list[str]
) -> None:
    """Requests come when some views are the next night's already; the marker still names the night before."""
    from evensong.data.lake import Lake
    from evensong.features.store import open_store

    later = Night(as_of=NIGHT.as_of + timedelta(days=20))
    lake = Lake(apart.lake)
    moment = later.as_of - timedelta(hours=9)
    lake.append_new("items", lake.current_items().with_columns(pl.col("price") + 3, event_timestamp=pl.lit(moment)))
    events = [{"user_id": f"au{user}", "item_id": f"ai{user + 9}", "event_timestamp": moment} for user in range(6)]
    lake.append_new("interactions", pl.DataFrame(events).with_columns(event_type=pl.lit("click")))
    features.build(apart, later)
    beginning = datetime(1970, 1, 2, tzinfo=UTC)
    open_store(apart).materialize(start_date=beginning, end_date=later.as_of, feature_views=views)
    with serve(apart) as client:
        for number in range(4):
            client.get("/recommend", params={"user_id": f"au{number}"})
        wait_for(lambda: len(list(request_log.read(apart))) == 4)
    # what was half there is known once the filling is written down
    told = storage.read_json(skew.run(apart, NIGHT))
    assert told["success"] is False
    features.materialize(apart, later)
    told = storage.read_json(skew.run(apart, NIGHT))
    assert (told["success"], told["num_requests"]) == (True, 4), told["message"]
    # and it stays known when no request was answered until the next one
    features.build(apart, Night(as_of=later.as_of + timedelta(days=3)))
    features.materialize(apart, Night(as_of=later.as_of + timedelta(days=3)))
    assert storage.read_json(skew.run(apart, NIGHT))["success"] is True


def test_marker_remembers_earlier_fillings_once(apart: Settings) -> None:
    marker = storage.join(apart.lake, features.MATERIALIZED)
    features.materialize(apart, NIGHT)
    assert storage.read_json(marker)["before"] == []
    for day in range(1, 4):
        night = Night(as_of=NIGHT.as_of + timedelta(days=day))
        features.build(apart, night)
        features.materialize(apart, night)
    moments = [one["as_of"][:10] for one in storage.read_json(marker)["before"]]
    assert moments == ["2026-01-18", "2026-01-17", "2026-01-16"]


def test_log_that_cannot_be_written_costs_no_request(world: Any, serve: Serve, tmp_path: Path, wait_for: Any) -> None:
    settings = beside(world, tmp_path)
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "requests").write_text("a file where a folder belongs")
    world.promote(world.second)
    with serve(settings) as client:
        for number in range(5):
            assert client.get(f"/recommend?user_id=au{number}").json()["source"] == "model"
        wait_for(lambda: "evensong_requests_log_dropped_total 5.0" in client.get("/metrics").text)
        assert "evensong_requests_logged_total 0.0" in client.get("/metrics").text


# ---------------------------------------------------------------- explain


def test_explanation_goes_from_the_request_to_the_lake(world: Any, served: Settings) -> None:
    told = explain.run(served, "asked-4")
    assert (told["request"]["user_id"], told["variant"]["name"], told["source"]) == ("au4", "champion", "model")
    assert told["variant"]["since"]["reason"] == "the test wants it"
    assert told["model"]["version"] == world.second
    assert len(told["recommendations"]) == 5
    assert told["index"]["kind"] == "flat"
    assert "index/items.faiss" in told["index"]["files"]
    assert told["lake_versions"]["interactions"] == 0
    assert told["features"]["table_versions"].keys() >= {"user_history", "item_content"}
    user = {one["name"]: one for one in told["features"]["user"]}
    assert user["user_history.num_interactions"]["value"] == 9
    assert len(user["user_history.num_interactions"]["version"]) == 12
    first = told["recommendations"][0]
    items = {one["name"]: one for one in told["features"]["items"][first["item_id"]]}
    assert items["item_content.title"]["value"] == first["title"]
    assert [name for name, one in items.items() if not one["version"]] == []


def test_request_answered_by_popularity_is_explained_too(world: Any, served: Settings) -> None:
    told = explain.run(served, "asked-by-nobody")
    assert (told["source"], told["reason"]) == ("popularity", "unknown_user")
    assert told["model"]["version"] == world.second
    assert {item["source"] for item in told["recommendations"]} == {"popularity"}
    assert {one["value"] for one in told["features"]["user"]} == {None}


@pytest.fixture
def asked_before(world: Any, serve: Serve, tmp_path: Path, wait_for: Any) -> Iterator[Settings]:
    """A request that the first version answered, before the second one took its place."""
    settings = beside(world, tmp_path)
    world.promote(world.first)
    with serve(settings) as client:
        client.get("/recommend?user_id=au4", headers={"x-request-id": "asked-before"})
        wait_for(lambda: request_log.find(settings, "asked-before") is not None)
    (tmp_path / "mlflow").mkdir(exist_ok=True)
    yield settings
    world.promote(world.second)


def test_request_of_a_version_that_was_rolled_back_names_the_moves_of_then(world: Any, asked_before: Settings) -> None:
    aliases.rollback(world.settings, actor="person:test", reason="it was wrong", to=world.second)
    ledger = (world.settings.home / "mlflow" / "ledger.jsonl").read_bytes()
    (asked_before.home / "mlflow" / "ledger.jsonl").write_bytes(ledger)
    told = explain.run(asked_before, "asked-before")
    assert told["model"]["version"] == world.first
    assert told["variant"]["since"]["reason"] == "the test wants it"
    assert told["variant"]["since"]["at"] < told["request"]["at"]
    assert told["index"]["kind"] == "flat"


def test_request_whose_bundle_was_collected_keeps_its_values_and_its_lake(world: Any, asked_before: Settings) -> None:
    world.promote(world.second)
    versions.set_tags(world.settings, world.first, {"collected": "2026-02-01T00:00:00+00:00"})
    try:
        told = explain.run(asked_before, "asked-before")
    finally:
        versions.delete_tag(world.settings, world.first, "collected")
    assert told["index"] == {"files": {}}
    assert told["lake_versions"]["interactions"] == 0
    assert told["features"]["dictionary_version"] is None
    user = {one["name"]: one["value"] for one in told["features"]["user"]}
    assert user["num_interactions"] == 9
    assert len(told["recommendations"]) == 5


def test_unknown_and_unsampled_requests_say_which_they_are(served: Settings) -> None:
    with pytest.raises(RequestNotFoundError, match="no logged request has this id"):
        explain.run(served, "never-asked")
    few = served.model_copy(update={"serving": served.serving.model_copy(update={"request_log_sample": 1e-9})})
    with pytest.raises(RequestNotFoundError, match="not in the sample of logged requests"):
        explain.run(few, "never-asked")
    # what was logged all the same is found
    assert explain.run(few, "asked-4")["request"]["request_id"] == "asked-4"


def test_command_explains_for_people_and_as_json(served: Settings) -> None:
    places = {
        f"EVENSONG_{name.upper()}": str(getattr(served, name))
        for name in ("home", "lake_uri", "artifacts_uri", "mlflow_tracking_uri", "mlflow_artifacts_uri")
    }
    command = [sys.executable, "-m", "evensong.cli", "explain", "asked-4"]
    words = subprocess.run(command, env=os.environ | places, capture_output=True, text=True, check=True)
    assert "recommender version" in words.stdout
    assert "answered by" in words.stdout
    assert "Airflow run" in words.stdout
    machine = subprocess.run([*command, "--json"], env=os.environ | places, capture_output=True, text=True, check=True)
    assert json.loads(machine.stdout)["request"]["request_id"] == "asked-4"
    command[-1] = "never-asked"
    failed = subprocess.run(command, env=os.environ | places, capture_output=True, text=True)
    assert failed.returncode == 2
    assert "no logged request has this id" in failed.stderr.replace("\n", " ")
