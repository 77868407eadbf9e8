"""The first command in a home, and one that is killed while it makes MLflow's database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from evensong.registry import commands
from evensong.settings import Settings

FIRST = (
    "from evensong.registry import commands; from evensong.settings import Settings; commands.list_versions(Settings())"
)


def test_a_first_command_that_is_killed_leaves_a_home_that_works(tmp_path: Path) -> None:
    home = tmp_path / "home"
    process = subprocess.Popen(
        [sys.executable, "-c", FIRST], env=os.environ | {"EVENSONG_HOME": str(home)}, stderr=subprocess.DEVNULL
    )
    draft = home / "mlflow" / ".mlflow.db.draft"
    while process.poll() is None and not (draft.exists() and draft.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not (home / "mlflow" / "mlflow.db").exists()
    assert commands.list_versions(Settings(home=home)) == []
