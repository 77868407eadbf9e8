"""The DAG is a table of contents: light to parse, typed to trigger, in the order of the contract."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pendulum import DateTime
from tests.dags.conftest import ROOT, Probe

from evensong.types import Night

#: What the tests ask about.
QUESTIONS = """{
    "upstream": {task.task_id: sorted(task.upstream_task_ids) for task in dag.tasks},
    "params": {name: dict(dag.params.get_param(name).schema, description=dag.params.get_param(name).description,
                          default=dag.params.get_param(name).value) for name in dag.params},
    "documented": [task.task_id for task in dag.tasks if (task.doc_md or task.python_callable.__doc__)],
    "links": {task.task_id: [link.name for link in task.operator_extra_links] for task in dag.tasks},
    "retries": {task.task_id: task.retries for task in dag.tasks},
    "trigger_rules": {task.task_id: str(task.trigger_rule.value) for task in dag.tasks},
    "hours": {task.task_id: task.execution_timeout and task.execution_timeout.total_seconds() / 3600
              for task in dag.tasks},
    "callbacks": {task.task_id: [call.__name__ for call in task.on_failure_callback] for task in dag.tasks},
    "max_active_runs": dag.max_active_runs,
    "catchup": dag.catchup,
    "first_run_within": str(dag.timetable.run_immediately),
    "start_date": str(dag.start_date),
}"""


@pytest.fixture(scope="module")
def dag(probe: Probe) -> dict[str, Any]:
    return probe("nightly_retraining.py", "nightly_retraining", QUESTIONS)


def test_parsing_imports_nothing_heavy(dag: dict[str, Any]) -> None:
    heavy = {
        "torch",
        "feast",
        "mlflow",
        "great_expectations",
        "faiss",
        "polars",
        "pandas",
        "deltalake",
        "boto3",
        "duckdb",
        "fastapi",
    }
    assert heavy.isdisjoint(dag["new_modules"])
    assert dag["seconds"] < 3


def test_steps_stand_in_the_order_of_the_contract(dag: dict[str, Any]) -> None:
    needs = {task: set(upstream) - {"plan"} for task, upstream in dag["upstream"].items()}
    assert needs.pop("plan") == set()
    assert needs == {
        "ingest": set(),
        "validate": {"ingest"},
        "build_features": {"validate"},
        # nothing is served or trained before the join has shown that it keeps the future out
        # and no request of a half-filled store is replayed
        "materialize": {"leak_canary", "skew"},
        "leak_canary": {"build_features"},
        "skew": {"build_features"},
        "build_training_set": {"leak_canary"},
        "train_retriever": {"build_training_set"},
        "train_ranker": {"build_training_set", "train_retriever"},
        "build_index": {"build_training_set", "train_retriever"},
        "evaluate": {"build_training_set", "train_retriever", "train_ranker", "build_index"},
        "bundle": {"build_training_set", "train_retriever", "train_ranker", "build_index", "evaluate"},
        "register": {"bundle", "evaluate"},
        # nothing is promoted before its features are online, and those of before are compared
        "gate": {"register", "evaluate", "materialize"},
        "review": {"gate", "register"},
        "promote": {"review", "register"},
        "feature_report": {"promote"},
    }


def test_data_docs_version_and_dossier_are_a_button_on_the_task_that_made_them(dag: dict[str, Any]) -> None:
    links = {task: names for task, names in dag["links"].items() if names}
    assert links == {"validate": ["Data Docs"], "register": ["MLflow version"], "gate": ["Dossier"]}


def test_form_is_typed_and_described(dag: dict[str, Any]) -> None:
    params = dag["params"]
    assert params.keys() == {"as_of", "source", "train_from", "refit", "seed"}
    assert all(len(param["description"]) > 20 for param in params.values())
    assert params["as_of"]["format"] == "date-time"
    assert params["train_from"]["enum"] == ["scratch", "champion"]
    assert {name: param["type"] for name, param in params.items()} == {
        "as_of": ["null", "string"],
        "source": "string",
        "train_from": "string",
        "refit": "boolean",
        "seed": "integer",
    }


def test_form_offers_the_defaults_of_a_night(dag: dict[str, Any]) -> None:
    night = Night(as_of=datetime(2026, 1, 15, tzinfo=UTC))
    offered = {name: param["default"] for name, param in dag["params"].items()}
    assert offered.pop("as_of") is None
    assert offered == night.model_dump(exclude={"as_of"})


def test_every_step_says_what_it_does(dag: dict[str, Any]) -> None:
    assert set(dag["documented"]) == set(dag["upstream"])
    assert "as_of" in dag["doc_md"]


def test_a_first_start_soon_after_the_scheduled_hour_runs_no_night_by_itself(dag: dict[str, Any]) -> None:
    assert dag["first_run_within"] == "0:00:00"


def test_night_that_nobody_reviews_is_promoted_all_the_same(dag: dict[str, Any]) -> None:
    assert dag["trigger_rules"]["promote"] == "none_failed"
    assert {rule for task, rule in dag["trigger_rules"].items() if task != "promote"} == {"all_success"}


def test_nights_that_wait_for_a_person_leave_room_for_the_next_and_none_is_made_up_for(dag: dict[str, Any]) -> None:
    # they take turns (below); a day's run a night, and a deadline of two weeks fits in
    assert dag["max_active_runs"] == 16
    assert dag["catchup"] is False
    # a start date would make Airflow run a past night as soon as it sees the DAG
    assert dag["start_date"] == "None"
    assert set(dag["retries"].values()) == {3}


def test_task_that_hangs_ends_one_day_and_the_wait_for_a_person_at_its_own_deadline(dag: dict[str, Any]) -> None:
    assert dag["hours"].pop("review") is None
    assert set(dag["hours"].values()) == {6.0}


def test_task_that_fails_tells_the_log_and_mlflow(dag: dict[str, Any]) -> None:
    assert set(map(tuple, dag["callbacks"].values())) == {("tell_failure", "record_failure")}


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, airflow_home: Path) -> Any:
    monkeypatch.setenv("AIRFLOW_HOME", str(airflow_home))
    monkeypatch.syspath_prepend(str(ROOT / "plugins"))
    import evensong_airflow

    return evensong_airflow


@pytest.fixture
def night_of(plugin: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Night]:
    """The night that a run with this logical date plans; `start` is the moment at which Airflow starts it."""
    monkeypatch.setenv("EVENSONG_HOME", str(tmp_path))

    def plan(logical_date: datetime | None, *, start: datetime, **form: Any) -> Night:
        run = SimpleNamespace(logical_date=logical_date, run_after=start)
        params = {"as_of": None, "source": "all", "train_from": "scratch", "refit": True, "seed": 7} | form
        context = {"params": params, "dag_run": run, "run_id": f"run of {start}"}
        monkeypatch.setattr(plugin, "get_current_context", lambda: context)
        night: Night = plugin.night_of_run()
        return night

    return plan


def test_a_scheduled_run_is_the_night_that_begins_its_day(plugin: Any, night_of: Callable[..., Night]) -> None:
    from airflow.timetables.base import DataInterval, TimeRestriction
    from airflow.timetables.trigger import CronTriggerTimetable

    # what Airflow's scheduler makes of the DAG's schedule, the evening after the last night
    timetable = CronTriggerTimetable("0 2 * * *", timezone="UTC", run_immediately=timedelta(0))
    due = timetable.next_dagrun_info(
        last_automated_data_interval=DataInterval.exact(DateTime(2026, 1, 14, 2, tzinfo=UTC)),
        restriction=TimeRestriction(earliest=None, latest=None, catchup=True),
    )
    assert due is not None
    night = night_of(due.logical_date, start=due.run_after)
    assert due.run_after == datetime(2026, 1, 15, 2, tzinfo=UTC)
    assert night == Night(as_of=datetime(2026, 1, 15, tzinfo=UTC))
    assert night.run_id == "2026-01-15T000000"


def test_a_scheduled_run_that_starts_late_keeps_its_own_as_of(night_of: Callable[..., Night]) -> None:
    """The scheduler was down, or other nights were before it: it is the night of when it was due."""
    late = datetime(2026, 1, 17, 9, 30, tzinfo=UTC)
    assert night_of(datetime(2026, 1, 15, 2, tzinfo=UTC), start=late).as_of == datetime(2026, 1, 15, tzinfo=UTC)


def test_the_day_of_a_run_is_that_of_utc(night_of: Callable[..., Night]) -> None:
    elsewhere = timezone(timedelta(hours=9))
    night = night_of(datetime(2026, 1, 15, 8, 59, tzinfo=elsewhere), start=datetime(2026, 1, 15, tzinfo=UTC))
    assert night.as_of == datetime(2026, 1, 14, tzinfo=UTC)


def test_a_run_without_a_date_is_the_night_before_its_start_and_the_form_may_name_any(
    plugin: Any, night_of: Callable[..., Night], tmp_path: Path
) -> None:
    start = datetime(2026, 1, 15, 17, 20, tzinfo=UTC)
    assert night_of(None, start=start).as_of == datetime(2026, 1, 15, tzinfo=UTC)
    night = night_of(start, start=start, as_of="2026-01-10T06:00:00Z", seed=3, train_from="champion")
    assert night == Night(as_of=datetime(2026, 1, 10, 6, tzinfo=UTC), seed=3, train_from="champion")
    # and it stands in the queue before any step asks for its turn
    assert json.loads((tmp_path / "turn.json").read_text())["waiting"] == {f"run of {start}": night.as_of.isoformat()}


def test_a_night_of_the_future_is_refused_and_stands_in_no_queue(
    plugin: Any, night_of: Callable[..., Night], tmp_path: Path
) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    later = datetime.now(UTC) + timedelta(days=2)
    with pytest.raises(AirflowFailException, match="expected a moment of today"):
        night_of(None, start=datetime.now(UTC), as_of=later.isoformat())
    assert not (tmp_path / "turn.json").exists()
    assert night_of(datetime.now(UTC), start=datetime.now(UTC)).as_of <= datetime.now(UTC)


def test_the_first_to_ask_has_its_turn_and_the_rest_wait(plugin: Any) -> None:
    running = {"a", "b", "c"}
    turns: dict[str, Any] = {}
    for run, as_of in (("b", "2026-01-02"), ("c", "2026-01-03"), ("a", "2026-01-01"), ("b", "2026-01-02")):
        turns = plugin.next_turn(turns, run, as_of, running.__contains__)
        assert turns["holder"] == "b"
    assert turns["waiting"] == {"a": "2026-01-01", "c": "2026-01-03"}


def test_the_oldest_night_that_waits_is_next(plugin: Any) -> None:
    turns = {"holder": "b", "waiting": {"a": "2026-01-01", "c": "2026-01-03"}}
    # b has ended, failed or was deleted; c asks before a
    running = {"a", "c"}
    turns = plugin.next_turn(turns, "c", "2026-01-03", running.__contains__)
    assert turns == {"holder": "a", "waiting": {"c": "2026-01-03"}}


def test_runs_that_start_together_have_their_turns_in_order_whoever_asks_first(plugin: Any) -> None:
    turns: dict[str, Any] = {}
    for run, as_of in (("b", "2026-01-02"), ("a", "2026-01-01"), ("c", "2026-01-03")):
        turns = plugin.in_queue(turns, run, as_of)
    running = {"a", "b", "c"}
    order = []
    while running:
        for run, as_of in (("c", "2026-01-03"), ("b", "2026-01-02"), ("a", "2026-01-01")):
            if run in running:
                turns = plugin.next_turn(turns, run, as_of, running.__contains__)
        order.append(turns["holder"])
        running.remove(turns["holder"])
    assert order == ["a", "b", "c"]


def test_a_run_that_ended_while_it_waited_is_forgotten(plugin: Any) -> None:
    turns = {"holder": "b", "waiting": {"a": "2026-01-01", "c": "2026-01-03"}}
    assert plugin.next_turn(turns, "c", "2026-01-03", {"c"}.__contains__) == {"holder": "c", "waiting": {}}


@pytest.mark.parametrize(("status_code", "may_go"), [(404, True), (503, False), (None, False)])
def test_only_a_deleted_run_gives_up_its_turn_when_airflow_cannot_tell(
    plugin: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status_code: int | None, may_go: bool
) -> None:
    from airflow.sdk.exceptions import AirflowRescheduleException, AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse

    class Asking:
        dag_id = "nightly_retraining"

        def get_dagrun_state(self, dag_id: str, run_id: str) -> str:
            raise AirflowRuntimeError(
                ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": status_code})
            )

    monkeypatch.setattr(plugin, "get_current_context", lambda: {"ti": Asking(), "run_id": "mine"})
    book = tmp_path / "turn.json"
    book.write_text(json.dumps({"holder": "another", "waiting": {}}))
    if may_go:
        plugin.take_turn(book, datetime(2026, 1, 2, tzinfo=UTC))
    else:
        with pytest.raises(AirflowRescheduleException):
            plugin.take_turn(book, datetime(2026, 1, 2, tzinfo=UTC))
    assert (json.loads(book.read_text())["holder"] == "mine") is may_go


def test_book_of_turns_is_whole_whenever_its_writer_is_killed(
    plugin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = tmp_path / "turn.json"
    before = {"holder": "a", "waiting": {"b": "2026-01-02"}}
    assert plugin._change(book, lambda _: before) == "a"

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    for place in ("json.dumps", "os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(place, killed)
            with pytest.raises(Killed):
                plugin._change(book, lambda turns: turns | {"holder": "b"})
        assert json.loads(book.read_text()) == before
    # the lock of the killed writer is gone with it
    assert plugin._change(book, lambda turns: turns | {"holder": "b"}) == "b"


def test_run_that_waits_for_a_person_leaves_its_turn_to_the_next_night(plugin: Any) -> None:
    running = {"a", "b"}
    turns = plugin.next_turn({}, "a", "2026-01-01", running.__contains__)
    turns = plugin.next_turn(turns, "b", "2026-01-02", running.__contains__)
    assert turns["holder"] == "a"
    turns = plugin.without(turns, "a")
    assert turns == {"holder": None, "waiting": {"b": "2026-01-02"}}
    assert plugin.next_turn(turns, "b", "2026-01-02", running.__contains__)["holder"] == "b"
    # who waits for a person while another works leaves nothing behind in the queue
    assert plugin.without({"holder": "b", "waiting": {"a": "2026-01-01"}}, "a") == {"holder": "b", "waiting": {}}


def test_person_of_airflow_has_a_name_in_the_ledger(plugin: Any) -> None:
    assert (plugin.person("ada"), plugin.person(None)) == ("person:ada", "person:unknown")


#: Loads the plugins as Airflow does, in a process of its own.
PLUGINS = """
import json, sys
from airflow import plugins_manager
from airflow.plugins_manager import get_fastapi_plugins, get_plugin_info
apps, _ = get_fastapi_plugins()
print(json.dumps({
    "apps": [app["url_prefix"] for app in apps],
    "views": [view for plugin in get_plugin_info(["external_views"]) for view in plugin["external_views"]],
    "heavy": [name for name in ("mlflow", "polars", "torch", "pandas", "evensong_promotions") if name in sys.modules],
    "errors": plugins_manager.get_import_errors(),
}))
"""


def test_every_process_loads_the_plugins_and_none_of_them_what_the_page_needs(airflow_home: Path) -> None:
    environment = os.environ | {
        "AIRFLOW_HOME": str(airflow_home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
    }
    words = subprocess.run([sys.executable, "-c", PLUGINS], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert words.returncode == 0, words.stderr
    loaded = json.loads(words.stdout.splitlines()[-1])
    assert loaded["errors"] == {}
    assert loaded["apps"] == ["/evensong"]
    assert [(view["name"], view["href"], view["destination"]) for view in loaded["views"]] == [
        ("Promotions", "/evensong/", "nav")
    ]
    assert loaded["heavy"] == []
