"""The service on a real model, real features and a real registry: who gets what, and why."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from evensong.monitoring import request_log
from evensong.serving import schemas
from evensong.settings import Settings

Serve = Callable[..., AbstractContextManager[httpx.Client]]


@pytest.fixture(scope="module")
def client(world: Any, serve: Serve) -> Iterator[httpx.Client]:
    """The service with the second version as champion."""
    world.promote(world.second)
    with serve(world.settings) as running:
        yield running


def changed(settings: Settings, **serving: Any) -> Settings:
    return settings.model_copy(update={"serving": settings.serving.model_copy(update=serving)})


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def sample(client: httpx.Client, series: str) -> float:
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(series + " "):
            return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"no series {series}")


@pytest.mark.parametrize("user_id", ["au0", "au7", "bu3", "bu19"])
def test_user_gets_unseen_items_of_the_own_taste(client: httpx.Client, world: Any, user_id: str) -> None:
    answer = client.get("/recommend", params={"user_id": user_id, "k": 5})
    wanted = {f"{user_id[0]}i{number}" for number in range(15)} - world.seen(user_id)
    assert set(ids(answer)) <= wanted
    assert len(ids(answer)) == 5


def test_answer_has_version_titles_falling_scores_and_the_request_id(client: httpx.Client, world: Any) -> None:
    response = client.get("/recommend", params={"user_id": "au1"}, headers={"x-request-id": "r-1"})
    answer = schemas.Recommendations.model_validate_json(response.content)
    assert answer.model_version == world.second
    assert answer.model_as_of is not None
    assert answer.model_as_of.startswith("2026-01-16T00:00:00")
    assert (answer.source, answer.reason, answer.filter, answer.k) == ("model", None, "seen", 5)
    assert answer.request_id == response.headers["x-request-id"] == "r-1"
    assert [item.rank for item in answer.items] == [1, 2, 3, 4, 5]
    scores = [item.score for item in answer.items]
    assert scores == sorted(scores, reverse=True)
    for item in answer.items:
        assert item.title == f"Apron {item.item_id[2:]}"
        assert item.category == "Apron"


def test_same_question_has_the_same_answer_by_get_and_by_post(client: httpx.Client) -> None:
    first = client.get("/recommend", params={"user_id": "bu2", "k": 5}).json()["items"]
    assert client.get("/recommend", params={"user_id": "bu2", "k": 5}).json()["items"] == first
    assert client.post("/recommend", json={"user_id": "bu2", "k": 5}).json()["items"] == first


def test_excluded_items_are_left_out_and_the_others_move_up(client: httpx.Client) -> None:
    first = ids(client.get("/recommend", params={"user_id": "au2", "k": 5}))
    without = client.post("/recommend", json={"user_id": "au2", "k": 5, "exclude_item_ids": [first[0], "no such item"]})
    assert ids(without)[:4] == first[1:]


def test_answer_is_shorter_when_less_is_left(client: httpx.Client, world: Any) -> None:
    left = ids(client.get("/recommend", params={"user_id": "au3", "k": 50}))
    assert 6 <= len(left) <= 21
    assert not set(left) & world.seen("au3")
    everything = [f"{group}i{number}" for group in "ab" for number in range(15)]
    answer = client.post("/recommend", json={"user_id": "au3", "exclude_item_ids": everything})
    assert ids(answer) == []


def test_user_that_nobody_knows_gets_popular_items_and_the_reason(client: httpx.Client) -> None:
    before = sample(client, 'evensong_fallbacks_total{reason="unknown_user"}')
    answer = client.get("/recommend", params={"user_id": "stranger", "k": 5}).json()
    assert (answer["source"], answer["reason"]) == ("popularity", "unknown_user")
    assert len(answer["items"]) == 5
    assert {item["source"] for item in answer["items"]} == {"popularity"}
    assert sample(client, 'evensong_fallbacks_total{reason="unknown_user"}') == before + 1


@pytest.mark.parametrize("user_id", ["au3", "stranger"])
def test_who_has_seen_everything_or_excludes_it_is_told_that_nothing_is_left(
    client: httpx.Client, world: Any, user_id: str
) -> None:
    everything = ids(client.post("/recommend", json={"user_id": "a stranger", "k": 50}))
    unseen = [f"{taste}i{number}" for taste in "ab" for number in range(15)]
    body = {"user_id": user_id, "k": 5, "exclude_item_ids": [*everything, *unseen]}
    answer = schemas.Recommendations.model_validate_json(client.post("/recommend", json=body).content)
    assert (answer.items, answer.reason) == ([], "nothing_left")


def test_items_of_the_session_tell_the_taste_of_a_stranger(client: httpx.Client) -> None:
    session = ["bi2", "bi3", "bi4", "bi5"]
    body = {"user_id": "stranger", "k": 5, "context": {"recent_item_ids": session, "surface": "home"}}
    response = client.post("/recommend", json=body)
    assert response.json()["source"] == "model"
    assert {item_id[0] for item_id in ids(response)} == {"b"}
    assert not set(ids(response)) & set(session)


@pytest.mark.parametrize(("rule", "hides_seen"), [("purchased", False), ("none", False), ("seen", True)])
def test_rule_decides_what_is_hidden(world: Any, serve: Serve, rule: str, hides_seen: bool) -> None:
    world.promote(world.second)
    with serve(changed(world.settings, filter=rule)) as client:
        answer = client.get("/recommend", params={"user_id": "au4", "k": 50})
        assert answer.json()["filter"] == rule
        assert (not set(ids(answer)) & world.seen("au4")) == hides_seen


def test_history_is_told_newest_first_with_titles(client: httpx.Client) -> None:
    history = schemas.History.model_validate_json(client.get("/users/bu5/history").content)
    assert history.known
    assert history.num_interactions == 9
    assert [event.item_id for event in history.events] == [f"bi{number}" for number in range(13, 4, -1)]
    assert history.events[0].title == "Barrow 13"
    assert history.top_categories == ["Barrow"]
    assert history.last_interaction == "2026-01-15T12:05:00+00:00"


def test_history_of_a_stranger_is_empty(client: httpx.Client) -> None:
    history = client.get("/users/a%2Fb%3Fc/history")
    assert history.status_code in (200, 404)
    history = client.get("/users/stranger/history")
    assert history.json()["known"] is False
    assert history.json()["events"] == []


def test_users_to_choose_from_are_found_by_their_beginning(client: httpx.Client) -> None:
    users = schemas.People.model_validate_json(client.get("/users", params={"limit": 100}).content).users
    assert len(users) == 40
    assert users[0].user_id in {"au19", "bu19"}
    found = client.get("/users", params={"starts_with": "bu1"}).json()["users"]
    assert {user["user_id"] for user in found} == {"bu1", *(f"bu{number}" for number in range(10, 20))}
    assert len(client.get("/users", params={"limit": 3}).json()["users"]) == 3


def test_service_tells_its_model_and_the_age_of_the_features(client: httpx.Client, world: Any) -> None:
    ready = schemas.Ready.model_validate_json(client.get("/readyz").content)
    assert (ready.model.version, ready.model.num_items, ready.warnings) == (world.second, 30, [])
    assert ready.features_as_of == "2026-01-16T00:00:00+00:00"
    moment = datetime(2026, 1, 16, tzinfo=UTC)
    assert sample(client, "evensong_features_timestamp_seconds") == moment.timestamp()
    age = (datetime.now(UTC) - moment).total_seconds()
    assert sample(client, "evensong_feature_staleness_seconds") == pytest.approx(age, abs=60)
    assert f'evensong_model_info{{as_of="{ready.model.as_of}",model="recommender",version="{world.second}"}} 1.0' in (
        client.get("/metrics").text
    )


def test_logged_request_holds_what_decided_the_answer(client: httpx.Client, world: Any, wait_for: Any) -> None:
    from evensong.recommender.funnel import Recommender
    from evensong.registry import bundle
    from evensong.serving.recommend import USER_FEATURES

    body = {"user_id": "au6", "k": 4, "exclude_item_ids": ["ai0"]}
    answer = client.post("/recommend", json=body, headers={"x-request-id": "logged-1"}).json()
    wait_for(lambda: request_log.find(world.settings, "logged-1") is not None)
    record = request_log.find(world.settings, "logged-1")
    assert record is not None
    assert record.model_version == world.second
    assert record.features_as_of == "2026-01-16T00:00:00+00:00"
    assert [(item["item_id"], item["score"]) for item in record.items] == [
        (item["item_id"], item["score"]) for item in answer["items"]
    ]
    # the record, the bundle of its version and the item features of its moment give the same scores again
    recommender = Recommender.load(bundle.fetch(world.settings, record.model_version))
    users = pl.DataFrame([record.user_features], schema={"user_id": pl.String(), **USER_FEATURES})
    from evensong.features.online import OnlineFeatures

    items = recommender.prepare_items(OnlineFeatures(world.settings).items(list(recommender.item_ids)))
    hidden = world.seen("au6") | set(record.exclude_item_ids)
    again = recommender.recommend(users, items, now=record.at, k=record.k, exclude={"au6": hidden})
    assert again["item_id"].to_list() == [item["item_id"] for item in record.items]
    assert again["score"].to_list() == pytest.approx([item["score"] for item in record.items], abs=1e-6)
    assert record.items[0]["features"]["title"] == answer["items"][0]["title"]


def test_store_that_breaks_costs_the_taste_and_not_the_answer(
    world: Any, serve: Serve, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evensong.features.online import OnlineFeatures

    def broken(*_: object) -> None:
        raise ConnectionError("the store went away")

    world.promote(world.second)
    with serve(changed(world.settings, poll_seconds=0.1)) as client:
        assert client.get("/recommend?user_id=au0").json()["source"] == "model"
        with monkeypatch.context() as patch:
            patch.setattr(OnlineFeatures, "_read", broken)
            for _ in range(5):
                answer = client.get("/recommend?user_id=au0").json()
                assert (answer["source"], answer["reason"]) == ("popularity", "features_unavailable")
                assert len(answer["items"]) == 5
            assert client.get("/users/au0/history").status_code == 503
            assert sample(client, 'evensong_online_store_errors_total{what="users"}') >= 3
            assert sample(client, 'evensong_fallbacks_total{reason="features_unavailable"}') == 5
        wait_for(lambda: client.get("/recommend?user_id=au0").json()["source"] == "model")


def test_store_that_is_away_when_the_model_loads_gives_popular_items(world: Any, serve: Serve, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = {
            "online_store_uri": f"redis://127.0.0.1:{closed.getsockname()[1]}/0",
            "feast_registry_uri": str(tmp_path / "registry.db"),
        }
        world.promote(world.second)
        with serve(world.settings.model_copy(update=away)) as client:
            answer = client.get("/recommend?user_id=au0").json()
            assert answer["source"] == "popularity"
            assert answer["reason"] in ("item_features_unavailable", "features_unavailable")
            assert len(answer["items"]) == 5
            assert any("start the online store" in warning for warning in client.get("/readyz").json()["warnings"])


def test_item_features_are_read_anew_after_a_materialization(world: Any, client: httpx.Client, wait_for: Any) -> None:
    from evensong.pipelines import features
    from evensong.types import Night

    before = sample(client, "evensong_item_feature_refreshes_total")
    features.materialize(world.settings, Night(as_of=datetime(2026, 1, 16, tzinfo=UTC)))
    wait_for(lambda: sample(client, "evensong_item_feature_refreshes_total") == before + 1)
    assert client.get("/recommend?user_id=au0").json()["source"] == "model"


def test_item_features_are_read_anew_after_a_stream_has_said_so(
    world: Any, client: httpx.Client, wait_for: Any
) -> None:
    from evensong.features.online import OnlineFeatures

    before = sample(client, "evensong_item_feature_refreshes_total")
    OnlineFeatures(world.settings).items_changed()
    wait_for(lambda: sample(client, "evensong_item_feature_refreshes_total") == before + 1)


def test_restart_without_the_registry_serves_the_last_good_version(world: Any, serve: Serve) -> None:
    world.promote(world.first)
    with serve(world.settings) as client:
        before = client.get("/recommend?user_id=au0").json()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = {"mlflow_tracking_uri": f"http://127.0.0.1:{closed.getsockname()[1]}"}
        with serve(world.settings.model_copy(update=away)) as client:
            after = client.get("/recommend?user_id=au0").json()
            ready = client.get("/readyz").json()
            assert sample(client, "evensong_registry_errors_total") >= 1
    assert ready["model"]["version"] == world.first
    assert any("the registry cannot be asked" in warning for warning in ready["warnings"])
    # scores hold the age of the last event, which went on
    assert [item["item_id"] for item in after["items"]] == [item["item_id"] for item in before["items"]]


def test_home_without_a_champion_says_what_to_run(serve: Serve, tmp_path: Path, wait_for: Any) -> None:
    settings = Settings(home=tmp_path, serving={"poll_seconds": 0.2})
    with serve(settings, ready=False) as client:
        wait_for(lambda: "evensong nightly" in client.get("/readyz").text)
        answer = client.get("/recommend?user_id=u1")
    assert answer.status_code == 503
    assert "no version has the alias `champion`" in answer.json()["error"]["message"]
