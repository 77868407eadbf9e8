"""A tiny world, trained for real: two taste groups that share no item, two nights, two registered versions."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import polars as pl
import pytest
import uvicorn

from evensong.data.lake import Lake
from evensong.settings import Settings
from evensong.types import Night

AS_OF = datetime(2026, 1, 15, tzinfo=UTC)
NUM_ITEMS, NUM_USERS, DAYS = 15, 20, 10
"""Items and users of each of the two groups; days of events before the first night."""


@dataclasses.dataclass(frozen=True)
class World:
    """What the tests know of the world."""

    settings: Settings
    first: str
    """The version that the first night registered."""
    second: str
    bundle_uri: str
    """The bundle of the second night, as it was registered."""
    evaluation_uri: str

    @staticmethod
    def seen(user_id: str) -> set[str]:
        """The items of a user's group that the user has seen; the rest is what can be recommended."""
        group, number = user_id[0], int(user_id[2:])
        return {f"{group}i{(number + step) % NUM_ITEMS}" for step in range(9)}

    def promote(self, version: str) -> None:
        """Move the alias, as a person."""
        from evensong.registry import aliases

        aliases.move(self.settings, version, actor="person:test", reason="the test wants it")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world after its second night; the second one's seed and day differ from the first's."""
    settings = Settings(
        home=tmp_path_factory.mktemp("world"),
        split={"holdout_days": 1, "ranker_days": 3},
        features={"history_length": 10},
        retriever={"dimension": 16, "epochs": 8, "batch_size": 64, "num_uniform_negatives": 16, "num_candidates": 20},
        ranker={"epochs": 10, "batch_size": 16, "num_negatives": 8},
        serving={"poll_seconds": 0.2, "default_k": 5, "max_k": 50},
    )
    _fill(Lake(settings.lake))
    first, _, _ = _night(settings, Night(as_of=AS_OF, seed=1, refit=False))
    second, bundle_uri, evaluation_uri = _night(settings, Night(as_of=AS_OF + timedelta(days=1), seed=2, refit=False))
    return World(settings, first, second, bundle_uri, evaluation_uri)


@pytest.fixture(name="wait_for", scope="session")
def wait_for_fixture() -> Callable[..., None]:
    """Waits until a condition holds."""
    return wait_for


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[httpx.Client]]:
    """Runs the service on a port of its own and gives a client of it once it is ready (or at once, `ready=False`)."""

    @contextmanager
    def running(settings: Settings, ready: bool = True) -> Iterator[httpx.Client]:
        from evensong.serving.app import create_app

        config = uvicorn.Config(create_app(settings), host="127.0.0.1", port=0, log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            wait_for(lambda: server.started)
            port = server.servers[0].sockets[0].getsockname()[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                if ready:
                    wait_for(lambda: client.get("/readyz").status_code == 200)
                yield client
        finally:
            server.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive()

    return running


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def _fill(lake: Lake) -> None:
    start = AS_OF - timedelta(days=DAYS)
    items = [
        {"item_id": f"{group}i{number}", "title": f"{word} {number}", "category_path": word, "price": 5.0 + number}
        for group, word in (("a", "Apron"), ("b", "Barrow"))
        for number in range(NUM_ITEMS)
    ]
    events = []
    for group in "ab":
        for user in range(NUM_USERS):
            for step in range(9):
                # the last event but one lies in the first night's holdout, the last one in the second's
                days = step * (DAYS - 1.5) / 6 if step < 7 else DAYS + step - 7.5
                moment = start + timedelta(days=days, minutes=user)
                item_id = f"{group}i{(user + step) % NUM_ITEMS}"
                events.append({"user_id": f"{group}u{user}", "item_id": item_id, "event_timestamp": moment})
    lake.append_new("items", pl.DataFrame(items).with_columns(event_timestamp=pl.lit(start - timedelta(days=1))))
    lake.append_new("interactions", pl.DataFrame(events).with_columns(event_type=pl.lit("click")))


def _night(settings: Settings, night: Night) -> tuple[str, str, str]:
    """The night's steps from the features to the registered version, and what they made."""
    from evensong.pipelines import bundle, evaluate, features, index, register, train, training_set

    features.build(settings, night)
    features.materialize(settings, night)
    examples = training_set.build(settings, night)
    retriever = train.retriever(settings, night, examples)
    ranker = train.ranker(settings, night, examples, retriever)
    items = index.build(settings, night, examples, retriever)
    evaluation = evaluate.run(settings, night, examples, retriever, ranker, items)
    artifact = bundle.assemble(settings, night, examples, retriever, ranker, items, evaluation)
    return register.run(settings, night, artifact, evaluation), artifact, evaluation
