"""A mover that is really killed, in a process of its own, leaves what the next command repairs."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.registry.conftest import Register

from evensong.registry import aliases, commands, ledger
from evensong.settings import Settings

KILLED = """
import os, signal, sys
from pathlib import Path
from evensong.registry import aliases, ledger
from evensong.settings import Settings

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

owner, name = {"ledger": ledger, "aliases": aliases}[sys.argv[2]], sys.argv[3]
setattr(owner, name, die)
aliases.move(Settings(home=Path(sys.argv[1])), "2", actor="rule:gate", reason="better")
"""


@pytest.mark.parametrize(
    ("owner", "name", "champion"),
    [("aliases", "_set_alias", "1"), ("ledger", "append", "2"), ("aliases", "_seal", "2"), ("ledger", "head", "2")],
    ids=["before the alias", "between the alias and the line", "after the line", "before MLflow remembers it"],
)
def test_kill_leaves_no_lock_and_no_half_move(
    settings: Settings, register: Register, tmp_path: Path, owner: str, name: str, champion: str
) -> None:
    register(day=1)
    register(day=2)
    aliases.move(settings, "1", actor="rule:gate", reason="first")
    done = subprocess.run([sys.executable, "-c", KILLED, str(settings.home), owner, name], check=False)
    assert done.returncode == -signal.SIGKILL
    answer = commands.verify(settings)
    assert (answer["sound"], answer["champion"]) == (True, champion)
    lines = ledger.read(settings)
    assert lines[-1].to_version == champion
    assert lines[-1].recovered == (name == "append")
    commands.promote(settings, "2" if champion == "1" else "1", reason="going on", actor="person:ada")
    assert commands.verify(settings)["sound"]
