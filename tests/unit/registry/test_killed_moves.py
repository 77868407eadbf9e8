"""A mover that is really killed, in a process of its own, leaves what the next command repairs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.registry.conftest import Register, night
from tests.variants import first_daily
from typer.testing import CliRunner

from evensong.cli import app
from evensong.pipelines import promote
from evensong.registry import aliases, commands, decisions, ledger, review, versions
from evensong.settings import Settings
from evensong.types import PromotionDecision

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
    first_daily(
        [("ledger", "append", "2"), ("aliases", "_set_alias", "1"), ("aliases", "_seal", "2"), ("ledger", "head", "2")]
    ),
    ids=["between the alias and the line", "before the alias", "after the line", "before MLflow remembers it"],
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


@pytest.fixture
def killed(settings: Settings, register: Register) -> Settings:
    """Two versions; whoever promoted the second was killed between the alias and the ledger's line."""
    register(day=1)
    second = register(day=2)
    aliases.move(settings, "1", actor="rule:gate", reason="first")
    decision = PromotionDecision(promote=True, needs_review=True, reasons=["better"])
    decisions.store(settings, second, decision, evidence="e", compared_with="1")
    review.ask(settings, versions.get(settings, "2"), decision, deadline_hours=12, default="keep")
    review.record(settings, "2", "approved", by="person:ada", via="page", comment="fine")
    done = subprocess.run([sys.executable, "-c", KILLED, str(settings.home), "ledger", "append"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [line.to_version for line in ledger.read(settings)] == ["1"]
    return settings


def test_every_look_at_the_registry_finishes_the_move(killed: Settings) -> None:
    (*_, last) = commands.read_ledger(killed)
    assert (last["to_version"], last["recovered"], last["actor"]) == ("2", True, "rule:gate")
    assert commands.verify(killed)["sound"]


@pytest.mark.parametrize(
    "look",
    first_daily(
        [
            lambda settings: commands.list_versions(settings),
            lambda settings: commands.show(settings, "2"),
            lambda settings: commands.origin(settings, "2"),
            lambda settings: promote.run(settings, night(2), "2"),
            lambda settings: review.carry_out(settings, "2"),
        ]
    ),
    ids=["list", "show", "origin", "the night's last step again", "the answer carried out"],
)
def test_look_that_finds_the_champion_moved_writes_its_line(
    killed: Settings, look: Callable[[Settings], object]
) -> None:
    look(killed)
    assert [(line.to_version, line.recovered) for line in ledger.read(killed)] == [("1", False), ("2", True)]
    # the ledger's words are the mover's, and nothing is written twice
    look(killed)
    assert len(ledger.read(killed)) == 2


def test_registry_ledger_on_the_command_line_shows_the_finished_move(
    killed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENSONG_HOME", str(killed.home))
    done = CliRunner().invoke(app, ["registry", "ledger", "--json"])
    assert done.exit_code == 0, done.output
    assert [line["to_version"] for line in json.loads(done.stdout)] == ["1", "2"]
