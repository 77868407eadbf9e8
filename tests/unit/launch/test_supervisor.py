"""Components start, are started again when they crash, and end together, however the launcher ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from evensong.errors import BusyError, LaunchError
from evensong.launch import guardian
from evensong.launch.components import Component, Port
from evensong.launch.supervisor import Supervisor, hold_launch, refuse_taken_ports
from evensong.settings import Settings, load_settings

#: A component with a worker of its own that, like Airflow's tasks, leads its own process group.
SERVER = """
import http.server, subprocess, sys

class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


def server(port: int) -> Component:
    return Component("server", ("python", "-c", SERVER, str(port)), health_url=f"http://127.0.0.1:{port}/")


def eventually(claim: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def of_home(home: Path) -> list[psutil.Process]:
    """Every process that was started for this home: all carry it in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("EVENSONG_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_component_that_crashes_is_started_again_and_reported(settings: Settings, port: int) -> None:
    told: list[str] = []
    with Supervisor(settings, [server(port)], report=told.append) as running:
        running.wait_ready(15)
        first = running.pids()["server"]
        os.kill(first, signal.SIGKILL)
        eventually(lambda: running.pids().get("server", first) != first)
        running.wait_ready(15)
        assert len(told) == 1
        assert "server ended with signal SIGKILL; starting it again in 1 s" in told[0]
        # the worker that the crash left behind is gone, the new one's is there
        assert len(of_home(settings.home)) == 2


def test_another_guardian_takes_the_post_of_one_that_was_killed(settings: Settings, port: int) -> None:
    told: list[str] = []
    with Supervisor(settings, [server(port)], report=told.append) as running:
        running.wait_ready(15)
        assert running._guardian is not None
        first = running._guardian.pid
        os.kill(first, signal.SIGKILL)
        eventually(lambda: running._guardian is not None and running._guardian.pid != first)
        assert told == ["the guardian ended with signal SIGKILL; another takes its post"]
        # components are still looked after
        before = running.pids()["server"]
        os.kill(before, signal.SIGKILL)
        eventually(lambda: running.pids().get("server", before) != before)
    assert of_home(settings.home) == []


def test_a_full_disk_does_not_end_the_watch(settings: Settings, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    told: list[str] = []

    def report(line: str) -> None:
        told.append(line)
        # what is told goes to the same disk
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evensong.launch.supervisor.MAX_BACKOFF_SECONDS", 0.2)
    with Supervisor(settings, [server(port)], report=report) as running:
        running.wait_ready(15)
        first = running.pids()["server"]
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", full)
            os.kill(first, signal.SIGKILL)
            eventually(lambda: any("cannot be looked after" in line for line in told))
            time.sleep(0.6)
            # said once, however often it is tried
            assert len([line for line in told if "cannot be looked after" in line]) == 1
            assert running.pids() == {}
        eventually(lambda: bool(running.pids()))


def test_stopping_ends_every_process_of_every_component(settings: Settings, port: int) -> None:
    with Supervisor(settings, [server(port)]) as running:
        running.wait_ready(15)
        assert len(of_home(settings.home)) == 2
    assert of_home(settings.home) == []


def test_a_component_that_does_not_listen_is_killed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evensong.launch.supervisor.STOP_GRACE_SECONDS", 0.3)
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    with Supervisor(settings, [Component("deaf", ("python", "-c", deaf))]):
        log = Path(settings.place("logs", "deaf.log"))
        eventually(lambda: log.exists() and "deaf" in log.read_text())
    assert of_home(settings.home) == []


def test_a_component_that_never_starts_is_given_up_with_its_last_words(settings: Settings) -> None:
    broken = Component(
        "broken", ("python", "-c", "raise SystemExit('no such table')"), health_url="http://127.0.0.1:1/"
    )
    last_words = r"broken ended 3 times before it was ready(.|\n)*no such table"
    with (
        Supervisor(settings, [broken], report=lambda line: None) as running,
        pytest.raises(LaunchError, match=last_words),
    ):
        running.wait_ready(30)


LAUNCHER = textwrap.dedent(
    """
    import signal, sys, threading
    from evensong.launch.components import Component
    from evensong.launch.supervisor import Supervisor
    from evensong.settings import load_settings

    code, port, home = sys.argv[1:]
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    parts = [Component("server", ("python", "-c", code, port), health_url=f"http://127.0.0.1:{port}/")]
    with Supervisor(load_settings(home=home), parts) as running:
        running.wait_ready(15)
        print("ready", flush=True)
        stopping.wait()
    """
)


@pytest.fixture
def launcher(settings: Settings, port: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", LAUNCHER, SERVER, str(port), str(settings.home)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_nothing_outlives_a_launcher_whose_first_guardian_was_killed(
    launcher: subprocess.Popen[str], settings: Settings
) -> None:
    def guardian_pid() -> int:
        for child in psutil.Process(launcher.pid).children():
            with contextlib.suppress(psutil.Error):
                if "evensong.launch.guardian" in child.cmdline():
                    return child.pid
        return 0

    first = guardian_pid()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: guardian_pid() not in (0, first))
    time.sleep(0.5)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait(15)
    eventually(lambda: of_home(settings.home) == [])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_the_launcher(
    launcher: subprocess.Popen[str], settings: Settings, number: signal.Signals
) -> None:
    assert len(of_home(settings.home)) == 2
    launcher.send_signal(number)
    launcher.wait(15)
    eventually(lambda: of_home(settings.home) == [])


def test_guardian_leaves_other_sessions_alone() -> None:
    ours, other = (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        for _ in range(2)
    )
    guardian.end_sessions({ours.pid}, grace_seconds=2)
    assert ours.wait(5) == -signal.SIGTERM
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_taken_port_is_named_with_the_variable_that_moves_it(port: int) -> None:
    parts = [Component("airflow-api-server", (), port=Port("127.0.0.1", port, "EVENSONG_AIRFLOW__PORT"))]
    refuse_taken_ports(parts)
    message = rf"port {port} .* is taken; .* set EVENSONG_AIRFLOW__PORT"
    with socket.create_server(("127.0.0.1", port)), pytest.raises(LaunchError, match=message):
        refuse_taken_ports(parts)


def test_a_second_launcher_in_the_same_home_says_so(settings: Settings, tmp_path: Path) -> None:
    with hold_launch(settings):
        with pytest.raises(BusyError, match=rf"already up \(process {os.getpid()}\)"), hold_launch(settings):
            pass
        with hold_launch(load_settings(home=tmp_path / "another")):
            pass
    with hold_launch(settings):
        pass
