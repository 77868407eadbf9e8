"""The log of requests: sampled by id, bounded, readable after a kill."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from evensong.data import storage
from evensong.monitoring import request_log
from evensong.serving.metrics import Metrics
from evensong.serving.request_log import RequestLog
from evensong.settings import Settings


@pytest.fixture
def s3_uri(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a real S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    boto3.client("s3").create_bucket(Bucket="logs")
    yield "s3://logs"
    server.stop()


def settings(home: Path, **serving: Any) -> Settings:
    return Settings(home=home, serving=serving)


def record(request_id: str, **values: Any) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "at": datetime(2026, 1, 15, 12, tzinfo=UTC),
        "user_id": "u1",
        "k": 1,
        "filter": "seen",
        "exclude_item_ids": [],
        "num_hidden": 0,
        "context": {},
        "model_name": "recommender",
        "model_version": "3",
        "source": "model",
        "reason": None,
        "features_as_of": None,
        "feature_versions": {"user_history": 4},
        "user_features": {"user_id": "u1", "num_interactions": 4, "top_category_shares": [0.5]},
        "items": [{"rank": 1, "item_id": "i1", "score": 0.125, "source": "model", "features": {"price": 2.5}}],
    } | values


def logged(where: Settings, records: list[dict[str, Any]]) -> Metrics:
    metrics = Metrics()
    log = RequestLog(where, metrics)
    log.start()
    for each in records:
        log.take(each["request_id"], lambda each=each: each)  # type: ignore[misc]
    log.stop()
    return metrics


def test_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    where = settings(tmp_path)
    logged(where, [record("r1"), record("r2", user_id="u2")])
    assert [each.request_id for each in request_log.read(where)] == ["r1", "r2"]
    found = request_log.find(where, "r2")
    assert found is not None
    assert found.model_dump() == record("r2", user_id="u2")
    assert request_log.find(where, "r3") is None


def test_request_in_ten_minutes_is_logged_whatever_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever serves leaves something for the skew check to replay."""
    where = settings(tmp_path, request_log_sample=1e-9)
    assert not any(request_log.is_sampled(f"r{number}", 1e-9) for number in range(100))
    now = 0.0
    monkeypatch.setattr("evensong.serving.request_log.time.monotonic", lambda: now)
    log = RequestLog(where, Metrics())
    log.start()
    for number in range(100):
        now = 15.0 * number
        log.take(f"r{number}", lambda number=number: record(f"r{number}"))  # type: ignore[misc]
    log.stop()
    assert [each.request_id for each in request_log.read(where)] == ["r0", "r40", "r80"]


def test_share_of_requests_logged_is_the_sample(tmp_path: Path) -> None:
    where = settings(tmp_path, request_log_sample=0.25, request_log_per_second=10_000)
    logged(where, [record(f"request-{number}") for number in range(800)])
    assert len(list(request_log.read(where))) == pytest.approx(200, abs=50)


def test_rate_is_bounded_and_what_is_dropped_is_counted(tmp_path: Path) -> None:
    where = settings(tmp_path, request_log_per_second=5)
    metrics = logged(where, [record(f"r{number}") for number in range(100)])
    kept = len(list(request_log.read(where)))
    assert 5 <= kept <= 10
    assert f"evensong_requests_logged_total {kept}.0" in metrics.render().decode()
    assert f"evensong_requests_log_dropped_total {100 - kept}.0" in metrics.render().decode()


def test_metrics_tell_what_the_log_holds(tmp_path: Path) -> None:
    metrics = logged(settings(tmp_path, request_log_sample=0.5, request_log_per_second=8), [record("r1")])
    told = metrics.render().decode()
    assert "evensong_request_log_sample_ratio 0.5" in told
    assert "evensong_request_log_limit_per_second 8.0" in told
    assert "evensong_requests_logged_total 1.0" in told


def test_line_cut_by_a_kill_is_skipped(tmp_path: Path) -> None:
    where = settings(tmp_path)
    logged(where, [record("r1")])
    (path,) = Path(request_log.place(where)).glob("*.jsonl")
    path.write_bytes(path.read_bytes() + b'{"request_id": "r2", "at"')
    assert [each.request_id for each in request_log.read(where)] == ["r1"]
    assert request_log.find(where, "r2") is None


def test_oldest_files_go_when_the_log_is_full(tmp_path: Path) -> None:
    where = settings(tmp_path, request_log_megabytes=1, request_log_days=36_500)
    folder = Path(request_log.place(where))
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"2026-01-0{number + 1}T0000-1.jsonl").write_bytes(b" " * 400_000)
    logged(where, [record("r1")])
    names = sorted(path.name for path in folder.glob("*.jsonl"))
    assert names[:2] == ["2026-01-03T0000-1.jsonl", "2026-01-04T0000-1.jsonl"]
    assert len(names) == 3


def test_files_go_when_they_are_too_old_even_the_last_one(tmp_path: Path) -> None:
    where = settings(tmp_path, request_log_days=2)
    folder = Path(request_log.place(where))
    folder.mkdir(parents=True)
    for days in (5, 3, 2.1, 1.9):
        moment = datetime.now(UTC) - timedelta(days=days)
        (folder / f"{moment:%Y-%m-%dT%H}00-1.jsonl").write_text("")
    assert len(request_log.clear_out(where)) == 3
    assert len(list(folder.iterdir())) == 1
    assert len(request_log.clear_out(settings(tmp_path, request_log_days=1))) == 1


def test_log_is_for_its_owner_alone(tmp_path: Path) -> None:
    where = settings(tmp_path)
    logged(where, [record("r1")])
    (path,) = Path(request_log.place(where)).glob("*.jsonl")
    assert path.stat().st_mode & 0o077 == 0


def test_disk_that_cannot_be_written_costs_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "serving").write_text("a file where a folder belongs")
    metrics = logged(settings(tmp_path), [record("r1"), record("r2")])
    assert "evensong_requests_log_dropped_total 2.0" in metrics.render().decode()
    assert "the request log cannot be written" in caplog.text


def test_record_that_cannot_be_made_costs_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    where, metrics = settings(tmp_path), Metrics()
    log = RequestLog(where, metrics)
    log.start()
    log.take("r1", lambda: record("r1")["no such field"])
    log.take("r2", lambda: record("r2", user_id=object()))
    log.take("r3", lambda: record("r3"))
    log.stop()
    assert [each.request_id for each in request_log.read(where)] == ["r3"]
    assert "evensong_requests_log_dropped_total 2.0" in metrics.render().decode()
    assert "request r1 cannot be logged" in caplog.text


def test_disk_that_fills_up_leaves_whole_lines_and_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, write = settings(tmp_path), os.write
    logged(where, [record("r1")])

    def full(file: int, content: bytes) -> int:
        if len(content) > 40:
            return write(file, content[:40])
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        metrics = logged(where, [record("r2")])
    assert "evensong_requests_log_dropped_total 1.0" in metrics.render().decode()
    logged(where, [record("r3")])
    (path,) = Path(request_log.place(where)).iterdir()
    assert path.read_bytes().count(b"\n") == 2
    assert [each.request_id for each in request_log.read(where)] == ["r1", "r3"]


def test_newest_requests_of_several_processes_come_in_the_order_of_their_moments(tmp_path: Path) -> None:
    where = settings(tmp_path)
    folder = Path(request_log.place(where))
    folder.mkdir(parents=True)
    for process in (1, 2):
        lines = [
            request_log.Record.model_validate(
                record(f"p{process}-{minute}", at=datetime(2026, 1, 15, 12, 2 * minute + process, tzinfo=UTC))
            ).model_dump_json()
            for minute in range(3)
        ]
        (folder / f"2026-01-15T1200-host-{process}.jsonl").write_text("\n".join(lines) + "\n")
    assert [each.request_id for each in request_log.newest(where, 4)] == ["p2-2", "p1-2", "p2-1", "p1-1"]


def test_log_in_an_object_store_is_read_back_and_bounded(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service of one machine writes, the night on another one reads: they share no disk."""
    monkeypatch.setattr("evensong.serving.request_log.REMOTE_SECONDS", 0.05)
    where = Settings(home=Path("elsewhere"), serving={"request_log_uri": f"{s3_uri}/requests"})
    logged(where, [record("r1"), record("r2", user_id="u2")])
    logged(where, [record("r3")])
    assert {each.request_id for each in request_log.newest(where, 10)} == {"r1", "r2", "r3"}
    found = request_log.find(where, "r2")
    assert found is not None
    assert found.user_id == "u2"
    storage.write_bytes(f"{s3_uri}/requests/2026-01-01T0000-host-1.jsonl", b"{}")
    assert request_log.clear_out(where) == [f"{s3_uri}/requests/2026-01-01T0000-host-1.jsonl"]
    assert len(request_log.newest(where, 10)) == 3
