"""A night's run in MLflow: it ends, it says why it failed, and what leads to it can be opened."""

from __future__ import annotations

import errno
import time

import pytest
from tests.unit.registry.conftest import night

from evensong.data import storage
from evensong.errors import RegistryError
from evensong.pipelines import night as nights
from evensong.pipelines import review
from evensong.registry import tracking
from evensong.settings import Settings


def of_night(settings: Settings, day: int) -> tuple[str, dict[str, str], dict[str, float]]:
    run = tracking.client(settings).get_run(tracking.night_run(settings, night(day)))
    return run.info.status, run.data.tags, run.data.metrics


def test_a_run_tells_who_made_it_when_and_what_came_of_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CTX_DAG_RUN_ID", "scheduled__2026-03-01")
    nights.begin(settings, night(1))
    begun = time.time()
    time.sleep(0.3)
    decision = {"promote": False, "reasons": ["not above popularity"], "checks": [], "needs_review": False}
    storage.write_json(settings.run_uri(night(1).run_id, "decision.json"), decision)
    nights.finish(settings, night(1), {})
    run = tracking.client(settings).get_run(tracking.night_run(settings, night(1)))
    # from the first step on, not from the one that first had something for MLflow
    assert run.info.start_time / 1000 == pytest.approx(begun, abs=0.2)
    assert run.info.end_time > run.info.start_time
    assert run.data.tags["mlflow.source.name"] == "Airflow run scheduled__2026-03-01"
    assert run.data.tags["mlflow.note.content"] == "**Not promoted**\n\n- not above popularity"
    experiment = tracking.client(settings).get_experiment(run.info.experiment_id)
    # or MLflow opens it as one of chats and traces
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_finished_night_is_finished_with_the_seconds_of_each_step(settings: Settings) -> None:
    assert of_night(settings, 1)[0] == "RUNNING"
    assert tracking.unfinished(settings) == ["2026-03-01T000000"]
    nights.note_seconds(settings, night(1), "ingest", 1.23456)
    nights.note_seconds(settings, night(1), "gate", 2.0)
    nights.note_seconds(settings, night(1), "gate", 3.0)
    nights.finish(settings, night(1), nights.noted_seconds(settings, night(1)))
    status, _, metrics = of_night(settings, 1)
    assert status == "FINISHED"
    assert metrics == {"seconds.ingest": 1.235, "seconds.gate": 3.0}
    assert tracking.unfinished(settings) == []


def test_a_failed_night_says_why_until_it_has_succeeded(settings: Settings) -> None:
    with pytest.raises(ValueError, match="no such column"), nights.failures_told(settings, night(1)):
        raise ValueError("no such column in postgresql://me:secret@db/shop")
    status, tags, _ = of_night(settings, 1)
    assert status == "FAILED"
    assert tags[tracking.FAILURE] == "ValueError: no such column in postgresql://me:***@db/shop"
    nights.finish(settings, night(1), {})
    status, tags, _ = of_night(settings, 1)
    assert status == "FINISHED"
    assert tracking.FAILURE not in tags


def test_a_night_stopped_by_hand_does_not_run_for_ever(settings: Settings) -> None:
    tracking.night_run(settings, night(1))
    with pytest.raises(KeyboardInterrupt), nights.failures_told(settings, night(1)):
        raise KeyboardInterrupt
    assert of_night(settings, 1)[0] == "FAILED"


def test_a_registry_that_is_away_does_not_hide_why_the_night_failed(settings: Settings) -> None:
    away = settings.model_copy(update={"mlflow_tracking_uri": "postgresql://nobody@127.0.0.1:1/mlflow"})
    with pytest.raises(ValueError, match="the reason"), nights.failures_told(away, night(1)):
        raise ValueError("the reason")


def test_a_run_that_another_took_the_place_of_does_not_run_for_ever(settings: Settings) -> None:
    tracking.log_params(settings, night(1), {"retriever.dimension": 8})
    first = tracking.night_run(settings, night(1))
    tracking.log_params(settings, night(1), {"retriever.dimension": 16})
    assert tracking.client(settings).get_run(first).info.status == "KILLED"
    assert of_night(settings, 1)[0] == "RUNNING"


@pytest.mark.parametrize(
    ("changes", "address"),
    [
        ({}, "http://127.0.0.1:5000"),
        ({"mlflow_host": "0.0.0.0", "mlflow_port": 5001}, "http://127.0.0.1:5001"),
        ({"mlflow_host": "::1"}, "http://[::1]:5000"),
        ({"mlflow_tracking_uri": "http://me:secret@mlflow.example:80/"}, "http://me:***@mlflow.example:80"),
        ({"mlflow_host": "0.0.0.0", "mlflow_url": "https://mlflow.example/ui/"}, "https://mlflow.example/ui"),
    ],
)
def test_links_to_mlflow_lead_somewhere(settings: Settings, changes: dict[str, object], address: str) -> None:
    there = settings.model_copy(update=changes)
    assert tracking.ui(there) == address
    assert review.version_page(there, "3") == f"{address}/#/models/recommender/versions/3"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: make room"),
        (PermissionError(errno.EACCES, "Permission denied"), "correct the rights"),
        (OSError(errno.EIO, "Input/output error"), "`evensong doctor`"),
    ],
)
def test_the_advice_fits_what_went_wrong(settings: Settings, error: OSError, advice: str) -> None:
    with pytest.raises(RegistryError, match=advice), tracking.registry_errors(settings, "registering"):
        raise error


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("http://mlflow.example:5000", "start the MLflow server at http://mlflow.example:5000"),
        ("postgresql://me:secret@db/mlflow", r"start the database at postgresql://me:\*\*\*@db/mlflow"),
    ],
)
def test_a_registry_that_does_not_answer_is_named_with_how_to_start_it(uri: str, advice: str) -> None:
    settings = Settings(mlflow_tracking_uri=uri)
    with pytest.raises(RegistryError, match=advice), tracking.registry_errors(settings, "the champion"):
        raise OSError("nobody is there")
