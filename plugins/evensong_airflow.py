"""What the DAGs need from Airflow beyond wiring: one night at a time, no retries in vain, links, alerts.

Light on purpose: Airflow imports this folder in every process.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperatorLink, conf, get_current_context
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowRescheduleException,
    AirflowRuntimeError,
    DownstreamTasksSkipped,
)

if TYPE_CHECKING:
    from evensong.settings import Settings
    from evensong.types import Night

log = logging.getLogger(__name__)

WAIT_FOR_TURN = timedelta(seconds=10)
#: Short waits, as between the two branches of a run, stay in the task; longer ones hand the worker back.
WAIT_FOR_LOCK_SECONDS = 30.0
#: Where the pages of the plugin lie below Airflow's own address.
PAGE_PREFIX = "/evensong"


def night_of_run() -> Night:
    """The night that this DAG run is for: the form's fields, and where as_of is empty, the midnight of the run's date.

    The date is the logical date: when a scheduled run was due, the night that a backfill repeats, or what the person
    who triggered it chose (now, unless changed); a run that was started without one has the moment of its start.

    Raises:
        AirflowFailException: that moment lies after the coming midnight.
    """
    from evensong.pipelines.night import refuse_future
    from evensong.settings import load_settings
    from evensong.types import Night

    context = get_current_context()
    fields = dict(context["params"])
    if fields.get("as_of") is None:
        run = context["dag_run"]
        date = (run.logical_date or run.run_after).astimezone(UTC)
        fields["as_of"] = date.replace(hour=0, minute=0, second=0, microsecond=0)
    night, settings = Night.model_validate(fields), load_settings()
    with refusals():
        refuse_future(settings, night)
    # runs that start together are in the queue before the first of them asks for its turn
    _change(_book(settings), lambda turns: in_queue(turns, context["run_id"], night.as_of.isoformat()))
    return night


@contextmanager
def step(
    night: dict[str, Any], *, alone: bool = True, first: bool = False, last: bool = False
) -> Iterator[tuple[Settings, Night]]:
    """The settings and the night for one step, while no other run or command changes this home.

    The `first` step of a night tidies up and notes the moment; the `last` closes the night's run in MLflow.

    A step that only asks the registry to move the alias is not `alone`: the registry has locks of its own, and a night
    that a person has just approved does not wait until another night is trained.

    An error that Evensong raises on purpose fails the task at once, since another try would meet it again; a storage or
    a registry that does not answer, and anything else, is tried again as the DAG says.

    Raises:
        AirflowFailException: a rule refused, or the input cannot be used.
        AirflowRescheduleException: another run or command is at work here; Airflow calls again.
    """
    from evensong.errors import BusyError
    from evensong.pipelines import night as nights
    from evensong.settings import load_settings
    from evensong.types import Night

    value = Night.model_validate(night)
    settings = load_settings()
    if alone:
        take_turn(_book(settings), value.as_of)
    try:
        with refusals(), nights.hold_home(settings, wait_seconds=WAIT_FOR_LOCK_SECONDS) if alone else nullcontext():
            if first:
                nights.begin(settings, value)
            begun = time.monotonic()
            yield settings, value
            nights.note_seconds(settings, value, get_current_context()["ti"].task_id, time.monotonic() - begun)
            if last:
                nights.finish(settings, value, nights.noted_seconds(settings, value))
    except BusyError as error:
        log.info("%s", error)
        raise AirflowRescheduleException(datetime.now(UTC) + WAIT_FOR_TURN) from error


@contextmanager
def refusals() -> Iterator[None]:
    """Let an error that another try would meet again fail the task at once; what may pass is raised as it is.

    Raises:
        AirflowFailException: a rule refused, or the input cannot be used.
    """
    from evensong.errors import BusyError, EvensongError, RegistryError, StorageError

    try:
        yield
    except (BusyError, RegistryError, StorageError):
        raise
    except EvensongError as error:
        raise AirflowFailException(f"{type(error).__name__}: {error}") from error


def hand_on(result: dict[str, Any], *, skip: str | None) -> dict[str, Any]:
    """A task's result; a task downstream that has nothing to do is skipped without being started.

    Raises:
        DownstreamTasksSkipped: how Airflow is told; the task that raises it succeeds.
    """
    if skip is None:
        return result
    # this way of ending a task keeps no result
    get_current_context()["ti"].xcom_push(key="return_value", value=result)
    raise DownstreamTasksSkipped(tasks=[skip])


def person(name: str | None) -> str:
    """The ledger's name for a user of Airflow."""
    return f"person:{name or 'unknown'}"


def take_turn(book: Path, as_of: datetime) -> None:
    """Hold the home for this DAG run from its first step to its last; among those that wait, the oldest as_of is next.

    `max_active_runs` does not hold a backfill's runs back from each other or from a scheduled run; this does. A run
    that has ended, however it ended, holds nothing.

    Raises:
        AirflowRescheduleException: it is another run's turn.
    """
    context = get_current_context()
    ti, run_id = context["ti"], context["run_id"]

    def runs(other: str) -> bool:
        try:
            return bool(ti.get_dagrun_state(ti.dag_id, other) == "running")
        except AirflowRuntimeError as error:
            # of an Airflow that is too busy to answer nothing follows, or two nights would be at work at once
            gone = (error.error.detail or {}).get("status_code") == HTTPStatus.NOT_FOUND
            log.info("the run %s: %s", other, "somebody deleted it; its turn is over" if gone else error)
            return not gone

    holder = _change(book, lambda turns: next_turn(turns, run_id, as_of.isoformat(), runs))
    if holder != run_id:
        log.info("the run %s has its turn; looking again in %d s", holder, WAIT_FOR_TURN.seconds)
        raise AirflowRescheduleException(datetime.now(UTC) + WAIT_FOR_TURN)


def next_turn(turns: dict[str, Any], run_id: str, as_of: str, runs: Callable[[str], bool]) -> dict[str, Any]:
    """Who holds the home, and who waits, after `run_id` has asked."""
    holder = turns.get("holder")
    if holder == run_id or (holder and runs(holder)):
        waiting = turns.get("waiting", {})
    else:
        waiting = {other: time for other, time in turns.get("waiting", {}).items() if other != run_id and runs(other)}
        waiting[run_id] = as_of
        holder = min(waiting, key=lambda other: (waiting[other], other))
    waiting = {other: time for other, time in (waiting | {run_id: as_of}).items() if other != holder}
    return {"holder": holder, "waiting": waiting}


def in_queue(turns: dict[str, Any], run_id: str, as_of: str) -> dict[str, Any]:
    """The book after `run_id` has said that it will ask."""
    holder = turns.get("holder")
    return {"holder": holder, "waiting": turns.get("waiting", {}) | ({} if holder == run_id else {run_id: as_of})}


def leave_turn(settings: Settings) -> None:
    """Let the next night begin while this run waits for a person."""
    run_id = get_current_context()["run_id"]
    _change(_book(settings), lambda turns: without(turns, run_id))


def without(turns: dict[str, Any], run_id: str) -> dict[str, Any]:
    """The book after `run_id` has left it."""
    holder = turns.get("holder")
    waiting = {other: time for other, time in turns.get("waiting", {}).items() if other != run_id}
    return {"holder": None if holder == run_id else holder, "waiting": waiting}


def _book(settings: Settings) -> Path:
    return Path(settings.place("turn.json"))


def _change(book: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    """Apply `change` to the book of turns while no other process reads it; the holder afterwards.

    The lock is a file of its own: the book is written beside its place and moved there, so that a kill in between
    leaves it as it was.
    """
    book.parent.mkdir(parents=True, exist_ok=True)
    with book.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            turns = json.loads(book.read_text())
        except (FileNotFoundError, json.JSONDecodeError):  # the first of all, or somebody edited it
            turns = {}
        turns = change(turns)
        draft = book.with_name(f".{book.name}.draft")
        with draft.open("w") as file:
            file.write(json.dumps(turns))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(book)
        return str(turns["holder"] or "")


class StepLink(BaseOperatorLink):
    """A button on the task's page, to what the step made."""

    def __init__(self, label: str) -> None:
        self._label = label
        self.url = ""

    @property
    def name(self) -> str:
        """The button's text."""
        return self._label

    @property
    def xcom_key(self) -> str:
        """Where Airflow keeps the address."""
        return "link_" + self._label.lower().replace(" ", "_")

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address that the step has shown."""
        return self.url


def show(label: str, value: str) -> None:
    """Say where to look: in the task's log, in its XCom, and on its button of that label where it has one."""
    context = get_current_context()
    log.info("%s: %s", label, value)
    context["ti"].xcom_push(key=label.lower().replace(" ", "_"), value=value)
    for link in context["task"].operator_extra_links:
        if link.name == label:
            link.url = value


def page(*parts: str) -> str:
    """The address of one of the plugin's pages."""
    return "/".join([conf.get("api", "base_url").rstrip("/") + PAGE_PREFIX, *parts])


def tell_failure(context: dict[str, Any]) -> None:
    """Write one readable line for whoever is called at night: what failed, for which night, why, where to look."""
    ti = context["ti"]
    error = context.get("exception")
    log.error(
        "%s failed in %s, run %s (try %s): %s\nlook at %s; when the cause is gone, clear the task there, "
        "or run `evensong nightly --as-of …`: finished steps give the same again",
        ti.task_id,
        ti.dag_id,
        ti.run_id,
        ti.try_number,
        error or "no exception was recorded: the process was killed",
        getattr(ti, "log_url", "the Airflow UI"),
    )


def record_failure(context: dict[str, Any]) -> None:
    """Mark the night's run in MLflow as failed, with the task and the reason."""
    from evensong.pipelines import night as nights
    from evensong.settings import load_settings
    from evensong.types import Night

    ti = context["ti"]
    planned = ti.xcom_pull(task_ids="plan")
    if planned:
        error = context.get("exception") or "the process was killed"
        nights.fail(load_settings(), Night.model_validate(planned), f"{ti.task_id}: {error}")
