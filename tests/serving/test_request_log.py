"""The log of requests: sampled by id, bounded, readable after a kill."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from evensong.monitoring import request_log
from evensong.serving.metrics import Metrics
from evensong.serving.request_log import RequestLog
from evensong.settings import Settings


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
        if log.wants(each["request_id"]):
            log.add(each)
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


def test_sample_of_none_logs_nothing(tmp_path: Path) -> None:
    where = settings(tmp_path, request_log_sample=0)
    logged(where, [record("r1")])
    assert list(request_log.read(where)) == []
    assert not request_log.folder(where).exists()


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


def test_line_cut_by_a_kill_is_skipped(tmp_path: Path) -> None:
    where = settings(tmp_path)
    logged(where, [record("r1")])
    (path,) = request_log.folder(where).glob("*.jsonl")
    path.write_bytes(path.read_bytes() + b'{"request_id": "r2", "at"')
    assert [each.request_id for each in request_log.read(where)] == ["r1"]
    assert request_log.find(where, "r2") is None


def test_oldest_files_go_when_the_log_is_full(tmp_path: Path) -> None:
    where = settings(tmp_path, request_log_megabytes=1)
    folder = request_log.folder(where)
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"2026-01-0{number + 1}T0000-1.jsonl").write_bytes(b" " * 400_000)
    logged(where, [record("r1")])
    names = sorted(path.name for path in folder.glob("*.jsonl"))
    assert names[:2] == ["2026-01-03T0000-1.jsonl", "2026-01-04T0000-1.jsonl"]
    assert len(names) == 3


def test_log_is_for_its_owner_alone(tmp_path: Path) -> None:
    where = settings(tmp_path)
    logged(where, [record("r1")])
    (path,) = request_log.folder(where).glob("*.jsonl")
    assert path.stat().st_mode & 0o077 == 0


def test_disk_that_cannot_be_written_costs_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "serving").write_text("a file where a folder belongs")
    metrics = logged(settings(tmp_path), [record("r1"), record("r2")])
    assert "evensong_requests_log_dropped_total 2.0" in metrics.render().decode()
    assert "the request log cannot be written" in caplog.text
