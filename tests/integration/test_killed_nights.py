"""A night that is killed in any step and run again ends like one that nobody disturbed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

AS_OF = "2026-01-09"
ROOT = Path(__file__).resolve().parents[2]


def environment(home: Path) -> dict[str, str]:
    small = {
        "EVENSONG_HOME": str(home),
        "EVENSONG_RETRIEVER__EPOCHS": "2",
        "EVENSONG_RANKER__EPOCHS": "1",
        "OMP_NUM_THREADS": "2",
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("EVENSONG_")} | small


def evensong(home: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "evensong.cli", *arguments, "--json"],
        env=environment(home),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        check=True,
    )
    return json.loads(done.stdout)


def shop(home: Path) -> None:
    evensong(home, "simulate", "--days", "8", "--start", "2026-01-01", "--policy", "warmup")
    # the shop has held the home too; from here on the lock's file is the night's
    (home / "night.lock").unlink()


def kill_in(home: Path, previous: str | None, seconds: float) -> str:
    """Start the night, wait for the end of the step `previous`, let `seconds` pass, kill; what had been printed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "evensong.cli", "nightly", "--as-of", AS_OF, "--json"],
        env=environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    printed = ""
    assert process.stderr is not None
    if previous is None:
        # the first step begins after the imports; a lock file says that it has
        while not (home / "night.lock").exists() and process.poll() is None:
            time.sleep(0.01)
    else:
        for line in process.stderr:
            printed += line
            if line.startswith(previous + " "):
                break
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    return printed


def tables(home: Path) -> dict[str, pl.DataFrame]:
    found = {}
    for log in sorted((home / "lake").rglob("_delta_log")):
        frame = pl.from_arrow(DeltaTable(str(log.parent)).to_pyarrow_table())
        assert isinstance(frame, pl.DataFrame)
        found[str(log.parent.relative_to(home))] = frame.sort(
            [name for name, dtype in frame.schema.items() if not isinstance(dtype, pl.List)], nulls_last=True
        )
    return found


def state(home: Path, result: dict[str, Any]) -> dict[str, Any]:
    versions = evensong(home, "registry", "list")
    return {
        "metrics": result["metrics"],
        "decision": result["decision"]["promote"],
        "champion": result["champion"],
        "versions": [(version["version"], version["champion"], version["digest"]) for version in versions],
        "moves": len(evensong(home, "registry", "ledger")),
        "sound": evensong(home, "registry", "ledger", "--verify")["sound"],
    }


def test_killed_in_every_step_and_run_again_the_night_ends_the_same(tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    for home in (calm, killed):
        shop(home)
    expected = evensong(calm, "nightly", "--as-of", AS_OF)

    previous = None
    for name, seconds in expected["seconds"].items():
        printed = kill_in(killed, previous, seconds / 2)
        assert previous is None or previous in printed, f"the run ended before {name}: {printed}"
        previous = name
    result = evensong(killed, "nightly", "--as-of", AS_OF)

    assert state(killed, result) == state(calm, expected)
    calm_tables, killed_tables = tables(calm), tables(killed)
    assert killed_tables.keys() == calm_tables.keys()
    for name, frame in calm_tables.items():
        again = killed_tables[name]
        assert again.height == frame.height, name
        assert again.equals(frame), name


def test_a_rerun_changes_nothing(tmp_path: Path) -> None:
    shop(tmp_path)
    first = evensong(tmp_path, "nightly", "--as-of", AS_OF)
    before, first_state = tables(tmp_path), state(tmp_path, first)
    again = evensong(tmp_path, "nightly", "--as-of", AS_OF)
    after = tables(tmp_path)
    assert state(tmp_path, again) == first_state
    assert all(after[name].equals(before[name]) for name in before)
