"""The demo lives through its nights once, goes on where it was killed, and shows the same when it is run again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evensong.launch import components, demo
from evensong.launch.supervisor import hold_launch
from evensong.settings import Settings, load_settings

pytestmark = [pytest.mark.slow, pytest.mark.airflow, pytest.mark.timeout(3000)]

POLICY = Path(__file__).resolve().parents[2] / "mlflow" / "promotion_policy.yaml"
#: As the demo, with fewer days.
SHORT = "from evensong.launch import demo; demo.WARM_UP_DAYS = 8; from evensong.settings import load_settings; "


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # one epoch on eight days is above popularity, and not yet above item-kNN
    policy = tmp_path_factory.mktemp("policy") / "policy.yaml"
    policy.write_text(POLICY.read_text().replace("names: [popularity, item_knn]", "names: [popularity]"))
    return load_settings(
        home=tmp_path_factory.mktemp("home"),
        registry={"policy_path": policy},
        airflow={"port": port},
        retriever={"dimension": 16, "epochs": 1},
        ranker={"epochs": 1, "max_slates": 500},
    )


def files(settings: Settings) -> dict[str, int]:
    """Everything that the nights wrote, and when."""
    places = [Path(settings.place(name)) for name in ("lake", "artifacts", "mlflow", "simulator", "demo", "airflow")]
    return {str(path): path.stat().st_mtime_ns for place in places for path in place.rglob("*") if path.is_file()}


def killed_in_the_second_night(settings: Settings) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SHORT + "demo.run(load_settings())"],
        env=components.common_variables(settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first = None
    for line in process.stderr:
        if "build_features done" in line:
            first, night = first or line.split(":")[0], line.split(":")[0]
            if night != first:
                break
    time.sleep(3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


def test_killed_continued_and_shown_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "WARM_UP_DAYS", 8)
    killed_in_the_second_night(settings)
    records = sorted(Path(settings.place("demo")).glob("20*.json"))
    assert len(records) == 1
    first_night = records[0].read_text()

    result = demo.run(settings)
    assert records[0].read_text() == first_night
    assert [night["version"] for night in result["nights"]] == ["1", "2", "3"]
    assert result["nights"][0]["promoted"]
    assert all(night["reasons"] for night in result["nights"])
    assert all(set(night["seconds"]) == set(demo.STEPS) for night in result["nights"])
    policies = [day["policy"] for day in result["days"]]
    assert policies[:8] == ["warmup"] * 8
    assert all(policy.startswith("champion version") for policy in policies[8:])
    assert len(policies) == 10
    user: dict[str, Any] = result["user"]
    assert len(user["recommendations"]) == 20
    assert all(item["title"] for item in [*user["history"], *user["recommendations"]])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("The nights", "popularity would have got", user["user_id"], "make up"))

    before = files(settings)
    begun = time.monotonic()
    # which only shows, beside an Airflow that is up as well
    with hold_launch(settings):
        again = demo.run(settings)
    seconds = time.monotonic() - begun
    assert {key: again[key] for key in ("nights", "days", "addresses")} == {
        key: result[key] for key in ("nights", "days", "addresses")
    }
    assert [item["item_id"] for item in again["user"]["recommendations"]] == [
        item["item_id"] for item in user["recommendations"]
    ]
    assert files(settings) == before
    assert seconds < 60
