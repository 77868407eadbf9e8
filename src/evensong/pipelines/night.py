"""One night in one process: the same steps in the same order as the DAG `nightly_retraining`.

Light to import: a task of the DAG that waits for its turn needs this module and nothing else.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from evensong.errors import BusyError, ConfigurationError, EvensongError
from evensong.settings import Settings, without_password
from evensong.types import Night, PromotionDecision, Value

log = logging.getLogger(__name__)

OnStep = Callable[[str, float | None], None]
#: Below the run's folder: a file a step with the seconds that it took.
SECONDS = "seconds"


class NightResult(Value):
    """What a night came to."""

    as_of: str
    run_uri: str
    version: str
    decision: PromotionDecision
    champion: str | None
    metrics: dict[str, dict[str, float]]
    """Model (`challenger`, `champion`, `popularity`) to its means on the held-out events."""
    seconds: dict[str, float]
    """Wall time of each step."""


def run_night(settings: Settings, night: Night, on_step: OnStep | None = None) -> NightResult:
    """Run every step of the night; `on_step` hears each step's name as it starts, and with its seconds as it ends.

    Raises:
        ConfigurationError: the night's `as_of` lies after the coming midnight.
        BusyError: another night runs in this home.
        ValidationFailedError: too much of the data is bad; nothing was trained.
        SourceError: the columns file names what no user or item has; nothing was trained.
        LeakFoundError: the join shows what was not known at the time, or loses rows; nothing was trained.
        NothingToLearnError: nothing was known at the night's `as_of`.
    """
    from evensong.data import storage
    from evensong.pipelines import (
        bundle,
        canary,
        evaluate,
        feature_report,
        features,
        gate,
        index,
        ingest,
        promote,
        register,
        skew,
        train,
        training_set,
        validate,
    )
    from evensong.types import EvaluationReport

    seconds: dict[str, float] = {}

    def step(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        if on_step:
            on_step(name, None)
        start = time.perf_counter()
        result = function(settings, night, *arguments)
        seconds[name] = round(time.perf_counter() - start, 3)
        if on_step:
            on_step(name, seconds[name])
        return result

    refuse_future(settings, night)
    with hold_home(settings), failures_told(settings, night):
        begin(settings, night)
        step("ingest", ingest.run)
        step("validate", validate.run)
        step("build_features", features.build)
        step("leak_canary", canary.run)
        step("skew", skew.run)
        step("materialize", features.materialize)
        examples = step("build_training_set", training_set.build)
        retriever = step("train_retriever", train.retriever, examples)
        ranker = step("train_ranker", train.ranker, examples, retriever)
        items = step("build_index", index.build, examples, retriever)
        evaluation = step("evaluate", evaluate.run, examples, retriever, ranker, items)
        artifact = step("bundle", bundle.assemble, examples, retriever, ranker, items, evaluation)
        version = step("register", register.run, artifact, evaluation)
        decision = PromotionDecision.model_validate(step("gate", gate.run, version, evaluation))
        moved = step("promote", promote.run, version)
        step("feature_report", feature_report.run)
        finish(settings, night, seconds)

    report = EvaluationReport.model_validate(storage.read_json(evaluation))
    models = {"challenger": report.challenger, "champion": report.champion} | dict(report.baselines)
    return NightResult(
        as_of=night.as_of.isoformat(),
        run_uri=settings.run_uri(night.run_id),
        version=str(version),
        decision=decision,
        champion=moved.get("champion"),
        metrics={name: model.metrics for name, model in models.items() if model},
        seconds=seconds,
    )


def refuse_future(settings: Settings, night: Night, now: datetime | None = None) -> None:
    """Refuse a night of a coming day: its model would count as newer than the next scheduled night's, which then moves
    nothing. The coming midnight, which ends today, is no other night than the one that is scheduled next.

    A simulated shop may be ahead of the clock: its nights go up to the end of the last day that it has lived.

    Raises:
        ConfigurationError: neither the clock nor such a shop has reached `as_of`.
    """
    now = now or datetime.now(UTC)
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    if night.as_of <= max(midnight, now + timedelta(seconds=settings.validation.max_clock_skew_seconds)):
        return
    from evensong.pipelines import simulate

    lived = simulate.lived_until(settings, night)
    if lived is None or lived < night.as_of:
        shop = "" if lived is None else f", and the simulated shop has lived up to {lived:%Y-%m-%d %H:%M}"
        raise ConfigurationError(
            f"as_of {night.as_of:%Y-%m-%d %H:%M} UTC: expected a moment of today at the latest, it is "
            f"{now:%Y-%m-%d %H:%M} UTC{shop}; choose an earlier one"
        )


def begin(settings: Settings, night: Night) -> None:
    """Remove what killed nights left, settle reviews that a tag or their deadline has answered, note the beginning."""
    from evensong.data import storage
    from evensong.pipelines import tidy
    from evensong.registry import tracking

    tidy.sweep(settings)
    _settle_reviews(settings)
    storage.write_json(settings.run_uri(night.run_id, tracking.BEGUN), datetime.now(UTC).isoformat())


def _settle_reviews(settings: Settings) -> None:
    """Nobody else may look at a review whose run is over; that a store is away is for the step to say that needs it."""
    from evensong.registry import review

    try:
        waiting = review.waiting(settings)
    except EvensongError as error:
        log.warning("open reviews were not settled: %s", error)
        return
    for one in waiting:
        log.info("version %s waits for a person until %s", one.version, f"{one.deadline:%Y-%m-%d %H:%M}")


def note_seconds(settings: Settings, night: Night, step: str, seconds: float) -> None:
    """Leave what a step took where the night's last step finds it."""
    from evensong.data import storage

    storage.write_json(settings.run_uri(night.run_id, SECONDS, f"{step}.json"), round(seconds, 3))


def noted_seconds(settings: Settings, night: Night) -> dict[str, float]:
    """What each step took, the last time that it was run to its end."""
    from evensong.data import storage

    uris = storage.list_files(settings.run_uri(night.run_id, SECONDS))
    return {uri.rpartition("/")[2].removesuffix(".json"): float(storage.read_json(uri)) for uri in uris}


def finish(settings: Settings, night: Night, seconds: dict[str, float]) -> None:
    """Close the night's MLflow run, with what each step took.

    Raises:
        RegistryError: the registry cannot be reached.
    """
    from evensong.registry import tracking

    tracking.log_timings(settings, night, seconds)
    tracking.finish(settings, night, note=_note(settings, night))


def _note(settings: Settings, night: Night) -> str:
    """What the gate said, for whoever opens the night's run."""
    from evensong.data import storage

    uri = settings.run_uri(night.run_id, "decision.json")
    if not storage.exists(uri):
        return ""
    decision = PromotionDecision.model_validate(storage.read_json(uri))
    if decision.needs_review:
        verdict = "A person was asked"
    else:
        verdict = "Promoted" if decision.promote else "Not promoted"
    reasons = "\n".join(f"- {reason}" for reason in decision.reasons or ["every check passed"])
    return f"**{verdict}**\n\n{reasons}"


def fail(settings: Settings, night: Night, reason: str) -> None:
    """Close the night's MLflow run as failed, where the registry can be reached: nothing hides the reason itself."""
    from evensong.registry import tracking

    try:
        tracking.finish(settings, night, failure=without_password(reason))
    except Exception as error:
        log.warning("the night's run in MLflow cannot be marked as failed: %s", error)


@contextmanager
def failures_told(settings: Settings, night: Night) -> Iterator[None]:
    """What ends the night early is told to MLflow, and raised all the same."""
    try:
        yield
    except KeyboardInterrupt:
        fail(settings, night, "stopped by Ctrl-C")
        raise
    except Exception as error:
        fail(settings, night, f"{type(error).__name__}: {error}")
        raise


@contextmanager
def hold_home(settings: Settings, wait_seconds: float = 0.0) -> Iterator[None]:
    """Let one process at a time change what is in `home`; a killed holder lets go by dying.

    Raises:
        BusyError: another process still holds it after `wait_seconds`.
    """
    path = Path(settings.place("night.lock"))
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    with path.open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    lock.seek(0)
                    raise BusyError(
                        f"{settings.home}: a night is running here (process {lock.read().strip() or 'unknown'}); "
                        "wait until it ends, or give this one an EVENSONG_HOME of its own"
                    ) from None
                time.sleep(0.5)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def holder(settings: Settings) -> tuple[str, datetime] | None:
    """The process that holds this home, and since when; none when nobody does."""
    return lock_holder(Path(settings.place("night.lock")))


def lock_holder(path: Path) -> tuple[str, datetime] | None:
    """Who wrote its process id into a lock file and holds it still, and when that was."""
    try:
        with path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                since = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                return lock.read().strip() or "unknown", since
    except FileNotFoundError:
        return None
    return None
