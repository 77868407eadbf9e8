"""The alias moves while the service answers: no request fails, no answer mixes versions, a bad bundle is not taken."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from evensong.monitoring import request_log
from evensong.serving import champion as champion_module
from evensong.serving.champion import Champion
from evensong.serving.metrics import Metrics

Serve = Callable[..., AbstractContextManager[httpx.Client]]


@contextmanager
def load(url: httpx.URL, num_threads: int = 3) -> Iterator[list[tuple[float, httpx.Response | Exception]]]:
    """Ask without a pause from several threads; what was answered, with the moment at which it was asked."""
    answers: list[tuple[float, httpx.Response | Exception]] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            number = 0
            while not stop.is_set():
                number += 1
                asked = time.monotonic()
                try:
                    answers.append((asked, client.get("/recommend", params={"user_id": f"au{number % 20}", "k": 5})))
                except Exception as error:
                    answers.append((asked, error))

    threads = [threading.Thread(target=ask) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def version(client: httpx.Client) -> str:
    answer: str = client.get("/readyz").json()["model"]["version"]
    return answer


def test_swap_under_load_fails_no_request_and_mixes_no_versions(world: Any, serve: Serve, wait_for: Any) -> None:
    world.promote(world.first)
    with serve(world.settings) as client:
        # what each version answers, asked in peace
        alone = {}
        for name in (world.first, world.second, world.first):
            world.promote(name)
            wait_for(lambda name=name: version(client) == name)
            alone[name] = {
                f"au{n}": client.get("/recommend", params={"user_id": f"au{n}", "k": 5}).json()["items"]
                for n in range(20)
            }
        with load(client.base_url) as answers:
            wait_for(lambda: len(answers) > 50)
            moved = time.monotonic()
            world.promote(world.second)
            wait_for(lambda: version(client) == world.second)
            swapped = time.monotonic()
            reached = len(answers)
            wait_for(lambda: len(answers) > reached + 50)
            world.promote(world.first)
            wait_for(lambda: version(client) == world.first)
    failed = [answer for _, answer in answers if isinstance(answer, Exception) or answer.status_code != 200]
    assert failed == []
    bodies = [(asked, answer.json()) for asked, answer in answers if isinstance(answer, httpx.Response)]
    assert {body["model_version"] for _, body in bodies} == {world.first, world.second}
    for _, body in bodies:
        assert body["source"] == "model"
        # one version's titles in its order; its scores are not those of the other version
        expected = alone[body["model_version"]][body["user_id"]]
        assert [item["item_id"] for item in body["items"]] == [item["item_id"] for item in expected]
        assert [i["score"] for i in body["items"]] == pytest.approx([i["score"] for i in expected], rel=1e-4)
    assert all(body["model_version"] == world.first for asked, body in bodies if asked < moved)
    # poll, registry and load: seconds on a busy machine, and never a restart
    assert swapped - moved < 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda versions: versions.pop("user_activity.num_events_7d"), "not served: user_activity.num_events_7d"),
        (
            lambda versions: versions.update({"item_content.price": "0" * 12}),
            "defined differently: item_content.price",
        ),
    ],
)
def test_bundle_whose_features_the_store_does_not_hold_leaves_the_old_version_answering(
    world: Any, serve: Serve, wait_for: Any, change: Callable[[dict[str, str]], Any], said: str
) -> None:
    world.promote(world.first)
    marker = Path(world.settings.lake) / "materialized.json"
    before = marker.read_text()
    with serve(world.settings) as client:
        told = json.loads(before)
        change(told["features"]["versions"])
        try:
            # as if the store had been filled by other code than the bundle was trained with
            marker.write_text(json.dumps(told))
            world.promote(world.second)
            wait_for(lambda: any(said in warning for warning in client.get("/readyz").json()["warnings"]))
            assert version(client) == world.first
            assert client.get("/recommend?user_id=au0").json()["model_version"] == world.first
        finally:
            marker.write_text(before)
            world.promote(world.first)


def test_running_service_answers_popular_items_once_the_features_mean_something_else(
    world: Any, serve: Serve, wait_for: Any
) -> None:
    world.promote(world.first)
    marker = Path(world.settings.lake) / "materialized.json"
    before = marker.read_text()
    with serve(world.settings) as client:
        assert client.get("/recommend?user_id=au0").json()["source"] == "model"
        told = json.loads(before)
        told["features"]["versions"]["item_content.price"] = "0" * 12
        try:
            # as if a release with another definition had filled the store
            marker.write_text(json.dumps(told))
            wait_for(lambda: client.get("/recommend?user_id=au0").json()["reason"] == "features_redefined")
            answer = client.get("/recommend?user_id=au0", headers={"x-request-id": "redefined-1"}).json()
            assert (answer["source"], answer["model_version"]) == ("popularity", world.first)
            assert not {item["item_id"] for item in answer["items"]} & world.seen("au0")
            (warning,) = client.get("/readyz").json()["warnings"]
            assert "defined differently: item_content.price" in warning
            assert "popular items" in warning
            # what was not used is not compared with what training would have seen
            wait_for(lambda: request_log.find(world.settings, "redefined-1") is not None)
            assert request_log.find(world.settings, "redefined-1").user_features is None
        finally:
            marker.write_text(before)
        wait_for(lambda: client.get("/recommend?user_id=au0").json()["source"] == "model")
        assert client.get("/readyz").json()["warnings"] == []


def test_champions_before_lie_on_the_disk_ready_for_a_rollback(world: Any, serve: Serve, wait_for: Any) -> None:
    world.promote(world.second)
    world.promote(world.first)
    cached = Path(world.settings.place("serving", "bundles", f"v{world.second}"))
    shutil.rmtree(cached, ignore_errors=True)
    with serve(world.settings) as client:
        wait_for(lambda: version(client) == world.first)
        wait_for(lambda: (cached / "manifest.json").is_file())


def test_champion_that_could_not_be_fetched_ahead_is_fetched_when_it_can_be(
    world: Any, serve: Serve, wait_for: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(champion_module, "RETRY_SECONDS", 0.2)
    world.promote(world.second)
    world.promote(world.first)
    cached = Path(world.settings.place("serving", "bundles", f"v{world.second}"))
    with damaged(world, world.second), serve(world.settings) as client:
        wait_for(lambda: version(client) == world.first)
        wait_for(lambda: any("cannot all be kept on this disk" in record.getMessage() for record in caplog.records))
        assert not cached.exists()
        # the registry holds the right bytes again
        with repaired(world, world.second):
            wait_for(lambda: (cached / "manifest.json").is_file())


def test_server_removes_from_its_disk_what_the_retention_rule_has_collected(
    world: Any, serve: Serve, wait_for: Any
) -> None:
    from evensong.registry import versions

    world.promote(world.second)
    world.promote(world.first)
    cached = Path(world.settings.place("serving", "bundles", f"v{world.second}"))
    with serve(world.settings) as client:
        wait_for(lambda: version(client) == world.first)
        wait_for(lambda: (cached / "manifest.json").is_file())
    # as another machine's command would
    versions.set_tags(world.settings, world.second, {versions.COLLECTED: "2026-01-01T00:00:00+00:00"})
    try:
        with serve(world.settings) as client:
            wait_for(lambda: version(client) == world.first)
            wait_for(lambda: not cached.exists())
            assert client.get("/recommend?user_id=au0").json()["model_version"] == world.first
    finally:
        versions.delete_tag(world.settings, world.second, versions.COLLECTED)


def test_rollback_needs_the_artifacts_no_more(world: Any, serve: Serve, wait_for: Any) -> None:
    from evensong.registry import aliases

    world.promote(world.second)
    world.promote(world.first)
    cached = Path(world.settings.place("serving", "bundles", f"v{world.second}"))
    artifacts = Path(world.settings.model_artifacts)
    away = artifacts.with_name("away")
    with serve(world.settings) as client:
        wait_for(lambda: version(client) == world.first)
        wait_for(lambda: (cached / "manifest.json").is_file())
        artifacts.rename(away)
        try:
            aliases.rollback(world.settings, actor="person:test", reason="clicks fell")
            wait_for(lambda: version(client) == world.second)
        finally:
            away.rename(artifacts)
    world.promote(world.first)


def test_damaged_bundle_leaves_the_old_version_answering(
    world: Any, serve: Serve, wait_for: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world.promote(world.first)
    with serve(world.settings) as client:
        before = client.get("/recommend?user_id=au0").json()
        with damaged(world, world.second):
            world.promote(world.second)
            wait_for(lambda: 'evensong_model_swap_failures_total{reason="corrupt"} 1.0' in client.get("/metrics").text)
            time.sleep(1)
            after = client.get("/recommend?user_id=au0").json()
            warnings = client.get("/readyz").json()["warnings"]
            # several polls later it has been said once
            told = [record for record in caplog.records if "cannot be taken into use" in record.getMessage()]
            world.promote(world.first)
            wait_for(lambda: client.get("/readyz").json()["warnings"] == [])
    assert before["model_version"] == after["model_version"] == world.first
    assert [item["item_id"] for item in before["items"]] == [item["item_id"] for item in after["items"]]
    assert len(told) == 1
    (warning,) = warnings
    assert f"version {world.first} goes on answering" in warning
    assert "expected SHA-256" in warning
    assert "evensong registry rollback" in warning


def test_bundle_that_cannot_be_loaded_leaves_the_old_version_answering(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evensong.recommender.funnel import Recommender

    world.promote(world.first)
    champion = Champion(world.settings, Metrics())
    champion.look()
    old = champion.in_use
    assert old is not None

    def unloadable(_: Path) -> Recommender:
        raise MemoryError("no room for a second model")

    monkeypatch.setattr(Recommender, "load", unloadable)
    world.promote(world.second)
    champion.look()
    assert champion.in_use is not None
    assert champion.in_use.recommender is old.recommender
    assert "no room for a second model" in champion.warnings[0]


def test_a_process_that_would_not_read_what_the_model_reads_takes_no_such_model(world: Any) -> None:
    world.promote(world.first)
    lean = world.settings.model_copy(update={"features": world.settings.features.model_copy(update={"groups": ()})})
    champion = Champion(lean, Metrics())
    champion.look()
    assert champion.in_use is None, "its scores would silently be others"
    (told,) = [warning for warning in champion.warnings if "cannot be taken into use" in warning]
    assert "which nothing reads under this process's settings" in told
    assert "EVENSONG_FEATURES__COLUMNS_PATH" in told
    assert "evensong registry promote VERSION" in told


def test_request_under_way_ends_on_the_old_model_which_is_then_freed(world: Any) -> None:
    from evensong.serving.recommend import Ask, UserReader, recommend

    world.promote(world.first)
    metrics = Metrics()
    champion = Champion(world.settings, metrics)
    champion.look()
    under_way = champion.in_use
    assert under_way is not None
    freed = weakref.ref(under_way.recommender)
    world.promote(world.second)
    champion.look()
    assert champion.in_use is not None
    assert champion.in_use.version == world.second
    reader = UserReader(world.settings, metrics)
    now = datetime(2026, 1, 16, 12, tzinfo=UTC)
    reply = recommend(Ask("r", "au0", 5), under_way, champion.features, reader, metrics, filter_rule="seen", now=now)
    assert reply.answer["model_version"] == world.first
    # without the garbage collector: what waits for it would hold two models in memory for long
    gc.disable()
    del under_way
    assert freed() is None
    gc.enable()


def test_service_that_starts_on_a_damaged_champion_serves_the_last_good_version(world: Any) -> None:
    world.promote(world.first)
    Champion(world.settings, Metrics()).look()
    with damaged(world, world.second):
        world.promote(world.second)
        champion = Champion(world.settings, Metrics())
        champion.look()
    assert champion.in_use is not None
    assert champion.in_use.version == world.first
    assert any("cannot be taken into use" in warning for warning in champion.warnings)
    world.promote(world.first)


@contextmanager
def damaged(world: Any, number: str) -> Iterator[None]:
    """One byte of the version's artifacts in the registry is another; its copy in the cache is gone."""
    shutil.rmtree(world.settings.place("serving", "bundles", f"v{number}"), ignore_errors=True)
    target = stored(world, number)
    sound = target.read_bytes()
    target.write_bytes(sound.replace(b"ai1", b"ai2", 1))
    try:
        yield
    finally:
        target.write_bytes(sound)


@contextmanager
def repaired(world: Any, number: str) -> Iterator[None]:
    """The damage of `damaged` undone, for a while."""
    target = stored(world, number)
    broken = target.read_bytes()
    target.write_bytes(broken.replace(b"ai2", b"ai1", 1))
    try:
        yield
    finally:
        target.write_bytes(broken)


def stored(world: Any, number: str) -> Path:
    """A file of the version's bundle in the registry's artifacts."""
    from evensong.registry import versions

    digest = versions.get(world.settings, number).digest
    (manifest,) = [
        path
        for path in Path(world.settings.model_artifacts).rglob("manifest.json")
        if hashlib.sha256(path.read_bytes()).hexdigest() == digest
    ]
    return manifest.parent / "index" / "item_ids.json"
