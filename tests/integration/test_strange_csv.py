"""A CSV that nobody prepared for us, with the settings as they are: imported, one night, a decision, an answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from fastapi.testclient import TestClient

from evensong.data.lake import Lake
from evensong.registry import aliases
from evensong.serving.app import create_app
from evensong.settings import load_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
BERLIN = ZoneInfo("Europe/Berlin")
OPENED, DAYS, AS_OF = datetime(2026, 2, 1, tzinfo=BERLIN), 24, "2026-02-25"
NUM_USERS, NUM_ITEMS, NUM_TASTES = 300, 200, 5
MAPPING = (
    *("--user", "Kunde", "--item", "Artikel", "--time", "Zeitpunkt", "--time-format", "%d.%m.%Y %H:%M:%S"),
    *("--time-zone", "Europe/Berlin", "--event-type", "view", "--value", "Dauer", "--decimal", ","),
)


def write_visits(path: Path) -> int:
    """Each customer comes back to one of five tastes, whose items have names of their own; returns the rows."""
    draw = np.random.default_rng(11)
    lines = ["Zeitpunkt;Kunde;Artikel;Dauer;Bemerkung"]
    popularity = 1 / np.arange(1, NUM_ITEMS // NUM_TASTES + 1) ** 0.7
    popularity /= popularity.sum()
    for day in range(DAYS):
        for user in np.flatnonzero(draw.random(NUM_USERS) < 0.4):
            for _ in range(draw.integers(2, 6)):
                taste = user % NUM_TASTES if draw.random() < 0.9 else draw.integers(NUM_TASTES)
                item = taste + NUM_TASTES * draw.choice(len(popularity), p=popularity)
                moment = OPENED + timedelta(days=day, seconds=int(draw.integers(7 * 3600, 23 * 3600)))
                seconds = f"{draw.gamma(2, 20):.1f}".replace(".", ",")
                lines.append(f"{moment:%d.%m.%Y %H:%M:%S};K-{user:04d};{item:05d};{seconds};größer")
    path.write_text("\n".join(lines) + "\n", encoding="cp1252")
    return len(lines) - 1


def evensong(home: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "evensong.cli", *arguments, "--json"],
        cwd=ROOT,
        env=os.environ | {"EVENSONG_HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_strange_csv_comes_to_a_decision_and_to_recommendations(tmp_path: Path) -> None:
    home, visits = tmp_path / "home", tmp_path / "besuche.csv"
    num_rows = write_visits(visits)
    added = evensong(home, "import", "events", str(visits), *MAPPING)
    assert added["interactions"] == num_rows
    settings = load_settings(home=home)
    times = Lake(settings.lake).read("raw_interactions")["event_timestamp"]
    # seven in the morning in Berlin is six in the morning in UTC, in winter
    assert times.min() >= datetime(2026, 2, 1, 6, tzinfo=UTC)
    assert times.dt.hour().min() == 6

    night = evensong(home, "nightly", "--as-of", AS_OF)
    decision = night["decision"]
    assert decision["checks"]
    assert decision["reasons"] or decision["promote"]
    assert set(night["metrics"]) == {"challenger", "popularity", "item_knn"}
    if not decision["promote"]:
        assert night["champion"] is None
        evensong(home, "registry", "promote", night["version"], "--reason", "the first one of this shop")
    champion = aliases.champion(settings)
    assert champion is not None
    assert champion.version == night["version"]

    with TestClient(create_app(settings)) as client:
        deadline = time.monotonic() + 120
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        answer = client.get("/recommend", params={"user_id": "K-0007", "k": 20}).json()
        stranger = client.get("/recommend", params={"user_id": "K-9999", "k": 20}).json()
    assert (answer["source"], answer["model_version"]) == ("model", champion.version)
    assert len(answer["items"]) == 20
    own = [item for item in answer["items"] if int(item["item_id"]) % NUM_TASTES == 7 % NUM_TASTES]
    assert len(own) > 10, "a fifth would be chance"
    assert (stranger["source"], stranger["reason"]) == ("popularity", "unknown_user")
