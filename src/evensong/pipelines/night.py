"""One night in one process: the same steps in the same order as the DAG `nightly_retraining`."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evensong.errors import BusyError
from evensong.settings import Settings
from evensong.types import Night, PromotionDecision, Value

OnStep = Callable[[str, float | None], None]


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
        BusyError: another night runs in this home.
        ValidationFailedError: too much of the data is bad; nothing was trained.
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

    with hold_home(settings):
        step("ingest", ingest.run)
        step("validate", validate.run)
        step("build_features", features.build)
        step("leak_canary", canary.run)
        step("skew", skew.run)
        step("materialize", features.materialize)
        examples = step("training_set", training_set.build)
        retriever = step("train_retriever", train.retriever, examples)
        ranker = step("train_ranker", train.ranker, examples, retriever)
        items = step("build_index", index.build, examples, retriever)
        evaluation = step("evaluate", evaluate.run, examples, retriever, ranker, items)
        artifact = step("bundle", bundle.assemble, examples, retriever, ranker, items, evaluation)
        version = step("register", register.run, artifact, evaluation)
        decision = PromotionDecision.model_validate(step("gate", gate.run, version, evaluation))
        moved = step("promote", promote.run, version)
        step("feature_report", feature_report.run)

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
