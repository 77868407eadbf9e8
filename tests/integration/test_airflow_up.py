"""`make up` as a person uses it: one command brings everything up, Ctrl-C ends all."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    airflow, mlflow, service = (str(probe.getsockname()[1]) for probe in probes)
    for probe in probes:
        probe.close()
    return os.environ | {
        "EVENSONG_HOME": str(tmp_path_factory.mktemp("home")),
        "EVENSONG_AIRFLOW__PORT": airflow,
        "EVENSONG_MLFLOW_PORT": mlflow,
        "EVENSONG_SERVING__PORT": service,
        "AIRFLOW__CORE__DAGS_FOLDER": "/somewhere/else",
    }


def evensong_up(variables: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "evensong.cli", "up", "--json"]
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def launcher(variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A launcher that has said that everything is up."""
    process = evensong_up(variables)
    said = ""
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        if "Ctrl-C ends all" in line:
            break
    assert "Evensong is up" in said
    # a log without a screen tells how far it has come, and what it does not heed
    for name in ("mlflow", "airflow-api-server", "airflow-scheduler", "service"):
        assert f"\n{name} is ready after " in said
    assert "not heeded, for Evensong's settings decide: AIRFLOW__CORE__DAGS_FOLDER" in said
    yield process
    process.kill()
    process.wait()
    process.stderr.close()
    assert process.stdout is not None
    process.stdout.close()


def of_home(variables: dict[str, str], but: int) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("EVENSONG_HOME") == variables["EVENSONG_HOME"]
            if ours and process.pid != but and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def eventually(claim: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_document_names_every_address(launcher: subprocess.Popen[str], variables: dict[str, str]) -> None:
    assert launcher.stdout is not None
    said = json.loads(launcher.stdout.readline())
    assert said["addresses"] == {
        "mlflow": f"http://127.0.0.1:{variables['EVENSONG_MLFLOW_PORT']}",
        "airflow-api-server": f"http://127.0.0.1:{variables['EVENSONG_AIRFLOW__PORT']}",
        "service": f"http://127.0.0.1:{variables['EVENSONG_SERVING__PORT']}",
    }
    assert said["pid"] == launcher.pid
    assert all(httpx.get(address, trust_env=False, follow_redirects=True) for address in said["addresses"].values())


def test_the_doctor_asks_what_runs(launcher: subprocess.Popen[str], variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "evensong.cli", "doctor", "--json"]

    def findings() -> list[str]:
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
        return [f"{one['state']}: {one['message']}" for one in json.loads(done.stdout) if one["piece"] == "components"]

    eventually(lambda: not any(one.startswith("bad") for one in findings()))
    told = findings()
    assert len([one for one in told if "answers at" in one]) == 3
    # there is no champion yet, and the service says what to do about it
    assert any(one.startswith("warning: service:") and "evensong nightly" in one for one in told)


def test_every_address_answers(launcher: subprocess.Popen[str], variables: dict[str, str]) -> None:
    airflow = f"http://127.0.0.1:{variables['EVENSONG_AIRFLOW__PORT']}"
    eventually(lambda: answers(f"{airflow}/api/v2/monitor/health"))

    def healthy() -> bool:
        health = httpx.get(f"{airflow}/api/v2/monitor/health", trust_env=False, timeout=10).json()
        return all((part or {}).get("status") == "healthy" for part in health.values())

    eventually(healthy)
    assert answers(f"http://127.0.0.1:{variables['EVENSONG_MLFLOW_PORT']}/health")
    assert answers(f"http://127.0.0.1:{variables['EVENSONG_SERVING__PORT']}/healthz")


def test_everything_listens_on_loopback_alone(launcher: subprocess.Popen[str], variables: dict[str, str]) -> None:
    ours = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get("EVENSONG_HOME") == variables["EVENSONG_HOME"]:
                ours |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    assert ours == {"127.0.0.1"}


def test_a_second_one_in_the_same_home_says_so(launcher: subprocess.Popen[str], variables: dict[str, str]) -> None:
    second = evensong_up(variables)
    out, said = second.communicate(timeout=60)
    assert second.returncode == json.loads(out)["exit_code"] == 2
    assert f"already up (process {launcher.pid})" in " ".join(said.split())


def test_another_home_with_the_same_ports_says_which_are_taken(
    launcher: subprocess.Popen[str], variables: dict[str, str], tmp_path: Path
) -> None:
    second = evensong_up(variables | {"EVENSONG_HOME": str(tmp_path)})
    _, said = second.communicate(timeout=60)
    assert second.returncode == 2
    for name in ("EVENSONG_AIRFLOW__PORT", "EVENSONG_MLFLOW_PORT", "EVENSONG_SERVING__PORT"):
        assert name in said


def test_ctrl_c_ends_all(launcher: subprocess.Popen[str], variables: dict[str, str]) -> None:
    assert len(of_home(variables, but=launcher.pid)) >= 6
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(60) == 0
    assert of_home(variables, but=launcher.pid) == []
