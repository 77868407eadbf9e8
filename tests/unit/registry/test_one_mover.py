"""One module moves the champion: whoever else could is found by its text."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
#: What MLflow's clients call the writes of an alias.
MOVES = ("set_registered_model_alias", "delete_registered_model_alias")


@pytest.mark.parametrize("place", ["dags", "plugins", "src", "feature_repo"])
def test_nobody_but_the_one_mover_touches_an_alias(place: str) -> None:
    files = sorted((ROOT / place).rglob("*.py"))
    assert files
    movers = {path.relative_to(ROOT).as_posix() for path in files if any(word in path.read_text() for word in MOVES)}
    assert movers == ({"src/evensong/registry/aliases.py"} if place == "src" else set())
