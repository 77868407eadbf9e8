"""What accepts and never answers holds up neither requests nor swaps: Redis, SQLite, S3, the registry."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from evensong.features.online import OnlineFeatures
from evensong.serving.metrics import Metrics
from evensong.serving.people import People
from evensong.serving.question import Question
from evensong.serving.recommend import FAILURES_TO_PAUSE, UserReader
from evensong.settings import Settings

Serve = Callable[..., AbstractContextManager[httpx.Client]]


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections, and what is sent, and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        yield server.getsockname()[1]


def changed(settings: Settings, **serving: Any) -> Settings:
    return settings.model_copy(update={"serving": settings.serving.model_copy(update=serving)})


def test_a_redis_that_hangs_costs_the_taste_and_neither_the_answers_nor_the_swaps(
    world: Any, serve: Serve, wait_for: Any, tmp_path: Path
) -> None:
    world.promote(world.first)
    with silent() as port:
        hung = world.settings.model_copy(
            update={
                "online_store_uri": f"redis://127.0.0.1:{port}/0",
                "feast_registry_uri": str(tmp_path / "registry.db"),
            }
        )
        # longer than the reads of the whole burst, so that the pause and not luck keeps answers quick
        with serve(changed(hung, online_store_seconds=0.5, poll_seconds=5.0)) as client:
            begun = time.monotonic()
            with ThreadPoolExecutor(16) as pool:
                answers = list(pool.map(lambda n: client.get(f"/recommend?user_id=au{n % 20}&k=5"), range(64)))
            assert time.monotonic() - begun < 4
            assert {answer.status_code for answer in answers} == {200}
            assert {answer.json()["source"] for answer in answers} == {"popularity"}
            assert {len(answer.json()["items"]) for answer in answers} == {5}
            reasons = {answer.json()["reason"] for answer in answers}
            assert reasons <= {"features_unavailable", "item_features_unavailable"}
            warnings = client.get("/readyz").json()["warnings"]
            assert any("start the online store" in warning for warning in warnings)
            world.promote(world.second)
            wait_for(lambda: client.get("/readyz").json()["model"]["version"] == world.second, 30)
    world.promote(world.first)


def test_a_read_of_a_silent_redis_ends_in_its_time_and_is_not_tried_again(world: Any) -> None:
    with silent() as port:
        hung = world.settings.model_copy(update={"online_store_uri": f"redis://127.0.0.1:{port}/0"})
        features = OnlineFeatures(changed(hung, online_store_seconds=0.4))
        begun = time.monotonic()
        with pytest.raises(Exception, match=r"(?i)timeout"):
            features.users(["au1"])
        assert 0.3 < time.monotonic() - begun < 1.2


def test_a_locked_sqlite_file_ends_a_read_in_its_time(world: Any, tmp_path: Path) -> None:
    place = tmp_path / "online.db"
    with sqlite3.connect(world.settings.online_store) as source, sqlite3.connect(place) as copy:
        source.backup(copy)
    settings = world.settings.model_copy(update={"online_store_uri": str(place)})
    features = OnlineFeatures(changed(settings, online_store_seconds=0.4))
    lock = sqlite3.connect(place, isolation_level=None)
    lock.execute("PRAGMA journal_mode = DELETE")
    lock.execute("BEGIN EXCLUSIVE")
    try:
        begun = time.monotonic()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            features.users(["au1"])
        assert 0.3 < time.monotonic() - begun < 2
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    assert features.users(["au1"])["num_interactions"].to_list() == [9]


def test_an_object_store_that_hangs_holds_up_no_swap(
    world: Any, serve: Serve, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("evensong.serving.champion.ASK_SECONDS", 2.0)
    monkeypatch.setattr("evensong.serving.champion.MARKER_SECONDS", 0.3)
    monkeypatch.setattr("evensong.features.online.OnlineFeatures._marker", lambda self: "as it was")
    world.promote(world.first)
    with silent() as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        away = world.settings.model_copy(update={"lake_uri": "s3://bucket/lake"})
        with serve(away) as client:
            wait_for(lambda: any("last materialization" in one for one in client.get("/readyz").json()["warnings"]))
            assert client.get("/recommend?user_id=au1").json()["model_version"] == world.first
            world.promote(world.second)
            wait_for(lambda: client.get("/recommend?user_id=au1").json()["model_version"] == world.second, 30)
    world.promote(world.first)


def test_a_registry_that_hangs_is_told_with_how_to_start_it(world: Any, serve: Serve, wait_for: Any) -> None:
    world.promote(world.first)
    with serve(world.settings) as client:
        assert client.get("/recommend?user_id=au1").status_code == 200
    with silent() as port, pytest.MonkeyPatch.context() as patch:
        patch.setattr("evensong.serving.champion.FIRST_ASK_SECONDS", 0.5)
        patch.setattr("evensong.serving.champion.ASK_SECONDS", 0.5)
        # nobody waits for the thread that asks
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        away = world.settings.model_copy(update={"mlflow_tracking_uri": f"http://127.0.0.1:{port}"})
        with serve(away) as client:
            assert client.get("/recommend?user_id=au1").json()["model_version"] == world.first
            (warning,) = [one for one in client.get("/readyz").json()["warnings"] if "registry" in one]
            assert f"start the MLflow server at http://127.0.0.1:{port}" in warning


def test_a_question_that_hangs_is_asked_once_and_its_answer_is_taken_when_it_comes() -> None:
    answered, asked = threading.Event(), []

    def ask() -> int:
        asked.append(1)
        answered.wait()
        return 7

    question = Question("slow", ask, first_seconds=0.05, seconds=0.05)
    for _ in range(3):
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            question.answer()
    answered.set()
    assert [question.answer(), question.answer()] == [7, 7]
    assert len(asked) == 2


class Store:
    """An online store that fails until it is mended, and counts who asks."""

    def __init__(self) -> None:
        self.num_asked, self.is_broken, self.asking = 0, True, threading.Event()

    def users_and_seen(self, _: list[str]) -> Any:
        self.num_asked += 1
        if self.is_broken:
            self.asking.wait(0.2)
            raise TimeoutError("nothing came")
        return "features", None


def test_after_the_pause_one_request_finds_out_for_all(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, serving={"poll_seconds": 0.3, "filter": "none"})  # type: ignore[arg-type]
    reader, store = UserReader(settings, Metrics()), Store()

    def ask(number: int) -> list[tuple[Any, Any]]:
        with ThreadPoolExecutor(number) as pool:
            return list(pool.map(lambda _: reader.read(store, "u1"), range(number)))  # type: ignore[arg-type]

    for _ in range(FAILURES_TO_PAUSE):
        ask(1)
    assert store.num_asked == FAILURES_TO_PAUSE
    ask(8)
    assert store.num_asked == FAILURES_TO_PAUSE
    time.sleep(0.35)
    assert {answer for answer, _ in ask(8)} == {None}
    assert store.num_asked == FAILURES_TO_PAUSE + 1
    store.is_broken = False
    time.sleep(0.35)
    # the first to ask finds it mended, and from then on everybody reads
    ask(1)
    assert {answer for answer, _ in ask(8)} == {"features"}


def test_users_that_could_not_be_read_are_read_at_the_next_look(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from evensong.serving import people as module
    from evensong.serving.freshness import materialized

    people, marker = People(world.settings), materialized(world.settings)
    read = module._read
    monkeypatch.setattr(module, "_read", lambda _: (_ for _ in ()).throw(OSError("the lake is away")))
    people.refresh(marker)
    assert people.find("", 5) == []
    monkeypatch.setattr(module, "_read", read)
    people.refresh(marker)
    assert len(people.find("", 5)) == 5
