"""The doctor finds what is wrong, and says of each finding what to do."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import pytest
from tests.integration.airflow_world import free_port, live, make_settings

from evensong.data import sources
from evensong.launch import checks, components
from evensong.launch.supervisor import Supervisor, hold_launch
from evensong.pipelines import doctor
from evensong.pipelines.doctor import Finding
from evensong.pipelines.night import hold_home, holder
from evensong.registry import bundle, review, tracking, versions
from evensong.settings import Settings
from evensong.types import PromotionDecision


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home with two champions and a source."""
    home = tmp_path_factory.mktemp("doctor") / "home"
    settings = make_settings(home)
    settings = settings.model_copy(update={"serving": settings.serving.model_copy(update={"port": free_port()})})
    live(settings, 1, 0.05)
    live(settings, 2, 0.05)
    (home / "days" / "interactions").mkdir(parents=True)
    (home / "days" / "interactions" / "2026-01-01.parquet").write_bytes(b"not read by the doctor")
    sources.register(settings.lake, "contract", str(home / "days"))
    return settings


def found(settings: Settings, piece: str, state: str) -> list[str]:
    return [one.message for one in checks.examine(settings) if (one.piece, one.state) == (piece, state)]


def test_a_sound_home_has_nothing_bad(sound: Settings) -> None:
    findings = checks.examine(sound)
    assert [one for one in findings if one.state == "bad"] == []
    assert {one.piece for one in findings} == {
        *("python", "home", "memory", "sources", "lake", "online store"),
        *("registry", "ledger", "reviews", "nights", "promotion policy", "components"),
    }
    assert any("champion is version 2" in one.message for one in findings)


def test_a_component_is_missed_where_the_launcher_looks_after_it(sound: Settings) -> None:
    def service(state: str) -> str:
        (said,) = [one for one in found(sound, "components", state) if one.startswith("service ")]
        return said

    parts = components.all_components(sound)
    idle = [dataclasses.replace(part, command=("python", "-c", "import time; time.sleep(60)")) for part in parts]
    with hold_launch(sound):
        assert "is about to be started" in service("good")
        with Supervisor(sound, idle):
            assert "is down although `evensong up` runs" in service("bad")
            assert len(found(sound, "components", "bad")) == 3
        with Supervisor(sound, [one for one in idle if one.name != "service"]):
            assert "is no part of what runs here now" in service("good")
            assert len(found(sound, "components", "bad")) == 2
    with hold_launch(sound):
        # what an earlier launcher looked after says nothing of one that has just begun
        record = Path(sound.place("launch.json"))
        record.write_text(record.read_text().replace('"pid": ', '"pid": 1'))
        assert "is about to be started" in service("good")


def test_an_edited_ledger_a_lost_source_and_a_wrong_policy_are_each_found(sound: Settings) -> None:
    ledger = Path(sound.place("mlflow", "ledger.jsonl"))
    before, policy = ledger.read_text(), sound.registry.policy_path.read_text()
    first, rest = before.split("\n", 1)
    edited = json.loads(first) | {"reason": "a better story"}
    (register,) = Path(sound.lake, "sources").glob("*.json")
    known = register.read_text()
    try:
        ledger.write_text(json.dumps(edited, sort_keys=True) + "\n" + rest)
        sound.registry.policy_path.write_text(policy + "\nsurprise: 1\n")
        register.write_text(known.replace("home/days", "home/gone"))
        findings: dict[str, str] = {}
        for one in checks.examine(sound):
            if one.state == "bad":
                findings[one.piece] = findings.get(one.piece, "") + one.message
    finally:
        ledger.write_text(before)
        sound.registry.policy_path.write_text(policy)
        register.write_text(known)
    assert findings.keys() >= {"ledger", "sources", "promotion policy"}
    assert "line 1 was edited" in findings["ledger"]
    assert "evensong registry promote VERSION" in findings["ledger"]
    assert "gone" in findings["sources"]
    assert "stops at `ingest`" in findings["sources"]
    assert "surprise" in findings["promotion policy"]


def test_an_alias_that_another_hand_moved_is_found(sound: Settings) -> None:
    client = tracking.client(sound)
    client.set_registered_model_alias("recommender", "champion", "1")
    try:
        (message,) = found(sound, "ledger", "bad")
    finally:
        client.set_registered_model_alias("recommender", "champion", "2")
    assert "the ledger left it at version 2, it points at version 1: another hand moved it" in message
    assert found(sound, "ledger", "bad") == []


def test_a_champion_of_other_features_than_the_stores_is_found(sound: Settings) -> None:
    directory = bundle.fetch(sound, "2")
    manifest = bundle.read_manifest(directory)
    trained_on = {"service": "recommender", "versions": {"user_statistics.spend_14d": "0" * 12}}
    with mock.patch.object(bundle, "read_manifest", return_value=manifest | {"features": trained_on}):
        (message,) = found(sound, "registry", "bad")
    assert "version 2, cannot answer from this store" in message
    assert "not served: user_statistics.spend_14d" in message
    assert "`evensong registry promote VERSION --reason WHY`" in message


def test_a_champion_that_reads_what_these_settings_leave_out_is_found(sound: Settings) -> None:
    reads = {"users": frozenset({"spend_14d"}), "items": frozenset()}
    directory = bundle.fetch(sound, "2")
    (directory / "retriever" / "columns").mkdir(parents=True, exist_ok=True)
    with mock.patch("evensong.features.model_columns.ModelColumns.load") as load:
        load.return_value.reads = reads
        (message,) = found(sound, "registry", "bad")
    assert "it reads spend_14d, which nothing reads under this process's settings" in message
    assert "EVENSONG_FEATURES__COLUMNS_PATH" in message


def test_a_review_past_its_deadline_is_warned_of(sound: Settings) -> None:
    decision = PromotionDecision(promote=True, needs_review=True, reasons=["better"])
    version = versions.get(sound, "1")
    asked = datetime.now(UTC) - timedelta(hours=13)
    try:
        review.ask(sound, version, decision, deadline_hours=24, default="keep", now=asked)
        (message,) = found(sound, "reviews", "good")
        assert message.startswith("version 1 waits for a person, its deadline is")
        versions.set_tags(sound, "1", {review.DEADLINE: (asked + timedelta(hours=12)).isoformat()})
        (message,) = found(sound, "reviews", "warning")
        assert "nothing has looked since; `evensong registry reviews` settles it" in message
        # the doctor only looks
        assert review.is_waiting(versions.get(sound, "1"))
    finally:
        for tag in (review.TAG, review.DEADLINE, review.DEFAULT, review.ASKED, review.QUESTION):
            versions.delete_tag(sound, "1", tag)


def test_a_relative_policy_is_looked_for_where_nights_look(
    sound: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    usual = sound.registry.model_copy(update={"policy_path": Path("mlflow/promotion_policy.yaml")})
    assert found(sound.model_copy(update={"registry": usual}), "promotion policy", "bad") == []
    lost = sound.registry.model_copy(update={"policy_path": Path("nowhere.yaml")})
    (message,) = found(sound.model_copy(update={"registry": lost}), "promotion policy", "bad")
    assert "nowhere.yaml" in message


def test_features_that_fall_behind_the_data_are_told(tmp_path: Path) -> None:
    import polars as pl

    from evensong.data import storage
    from evensong.data.lake import Lake

    settings = Settings(home=tmp_path)
    events = {"user_id": ["u"], "item_id": ["i"], "event_timestamp": [datetime(2026, 1, 12, 9, tzinfo=UTC)]}
    Lake(settings.lake).append_new("raw_interactions", pl.DataFrame(events).with_columns(event_type=pl.lit("click")))
    for as_of, state in (("2026-01-12", "good"), ("2026-01-10", "warning")):
        storage.write_json(storage.join(settings.lake, "materialized.json"), {"as_of": f"{as_of}T00:00:00+00:00"})
        (message,) = [
            one.message for one in doctor.examine(settings) if (one.piece, one.state) == ("online store", state)
        ]
        assert f"features as of {as_of}" in message
    assert "2.4 days behind the newest event" in message
    assert "evensong nightly --as-of 2026-01-12" in message


def test_a_night_at_work_is_told_and_one_that_hangs_is_warned_of(
    sound: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    from datetime import timedelta

    assert holder(sound) is None
    with hold_home(sound):
        held = holder(sound)
        assert held is not None
        assert held[0] == str(os.getpid())
        (message,) = found(sound, "nights", "good")
        assert f"process {os.getpid()} holds the home" in message
        monkeypatch.setattr(doctor, "LONG_NIGHT", timedelta(0))
        (message,) = found(sound, "nights", "warning")
        assert "end that process" in message
    assert holder(sound) is None


def test_a_night_that_was_killed_is_not_forgotten(sound: Settings) -> None:
    from tests.unit.registry.conftest import night

    for day in (1, 2):
        tracking.finish(sound, night(day))
    assert found(sound, "nights", "warning") == []
    tracking.night_run(sound, night(9))
    (message,) = found(sound, "nights", "warning")
    assert message.startswith("2026-03-09T000000 is not finished")
    tracking.finish(sound, night(9), failure="killed")


@dataclasses.dataclass
class Disk:
    free: float


def test_little_room_is_warned_of_and_none_is_bad(sound: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((50e9, "good"), (1.5e9, "warning"), (0.2e9, "bad")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _, free=free: Disk(free))
        message = found(sound, "home", state)[0]
        assert f"{free / 1e9:.1f} GB free" in message
        assert ("make room" in message) == (state != "good")


@pytest.fixture
def taken(sound: Settings) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", sound.serving.port)) as server:
        yield server


def test_a_port_that_something_else_has_taken_is_named(sound: Settings, taken: socket.socket) -> None:
    (message,) = found(sound, "components", "bad")
    assert f"port {sound.serving.port} on 127.0.0.1 is taken by something that is no service" in message
    assert "EVENSONG_SERVING__PORT" in message


def test_a_service_that_answers_for_another_home_is_not_called_good(sound: Settings) -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", sound.serving.port), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (message,) = found(sound, "components", "warning")
        server.shutdown()
    assert "no `evensong up` runs for this home" in message
    assert "of another home, beside which this one needs another EVENSONG_SERVING__PORT" in message


def test_whatever_a_piece_throws_is_a_finding_without_its_password(sound: Settings) -> None:
    def broken(_: Settings) -> doctor.Look:
        raise RuntimeError("postgresql://me:secret@db is on fire")
        yield

    findings = doctor.examine(sound, {"fire": broken})
    assert findings[-1] == Finding(piece="fire", state="bad", message="RuntimeError: postgresql://me:***@db is on fire")
