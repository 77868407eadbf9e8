"""What killed steps left goes; what is written now, and everything else, stays."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from evensong.data import storage
from evensong.pipelines import tidy
from evensong.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def killed(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """Writes that end before the move into place, as a kill does."""

    def kill(*_: object) -> None:
        raise SystemExit

    folder = settings.home / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_text("half")
    storage.write_folder(folder, settings.run_uri("night", "index"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        patch.setattr(shutil, "rmtree", kill)
        for write in (
            lambda: storage.write_json(settings.run_uri("night", "decision.json"), {}),
            lambda: storage.write_bytes(f"{settings.lake}/validations/night.json", b"{}"),
            lambda: storage.write_folder(folder, settings.run_uri("night", "index")),
        ):
            with pytest.raises(SystemExit):
                write()
    (Path(settings.place("serving", "bundles")) / ".fetch-abc" / "bundle").mkdir(parents=True)


def test_old_drafts_go_and_nothing_else(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    killed(monkeypatch, settings)
    storage.write_json(settings.run_uri("night", ".hidden.json"), {})
    before = set(settings.home.rglob("*"))
    left = tidy.drafts(settings, min_age_seconds=0)
    assert len(left) == 4
    assert {path.name.rpartition(".")[2] for path in left if path.name.endswith(".old")} == {"old"}
    time.sleep(0.05)
    removed = tidy.sweep(settings, min_age_seconds=0.01)
    assert sorted(removed) == [str(path) for path in left]
    gone = {path for path in before if any(path == one or one in path.parents for one in left)}
    assert set(settings.home.rglob("*")) == before - gone


def test_a_draft_that_is_being_written_stays(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    killed(monkeypatch, settings)
    assert tidy.sweep(settings) == []
    # a folder that was moved away has the age of its content, and was moved just now
    (old,) = Path(settings.run_uri("night")).glob(".*.old")
    os.utime(old, (0, 0))
    assert tidy.sweep(settings) == []


def test_a_home_that_is_not_there_yet_has_nothing_to_sweep(settings: Settings) -> None:
    assert tidy.sweep(settings) == []
