"""What is wrong here and what to do about it: one finding a piece."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from evensong.errors import EvensongError
from evensong.settings import Settings, without_password
from evensong.types import TABLES, Value


class Finding(Value):
    """One piece, how it is, and what to do."""

    piece: str
    state: Literal["good", "warning", "bad"]
    message: str


def examine(settings: Settings) -> list[Finding]:
    """Look at every piece; one that cannot be looked at is a finding, never an error."""
    findings = []
    for piece, look in _PIECES.items():
        try:
            findings += [Finding(piece=piece, state=state, message=message) for state, message in look(settings)]
        except EvensongError as error:
            findings.append(Finding(piece=piece, state="bad", message=str(error)))
        except Exception as error:  # the doctor reports whatever a broken piece throws
            text = without_password(f"{type(error).__name__}: {error}".splitlines()[0])
            findings.append(Finding(piece=piece, state="bad", message=text))
    return findings


_State = Literal["good", "warning", "bad"]
_Look = Iterator[tuple[_State, str]]


def _python(settings: Settings) -> _Look:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        yield "good", f"Python {version}"
    else:
        yield "bad", f"expected Python 3.11, got {version}; run `make install`"


def _home(settings: Settings) -> _Look:
    home = Path(settings.place())
    place = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(place, os.W_OK):
        yield "bad", f"{home} cannot be written; set EVENSONG_HOME to a folder that can"
        return
    free = shutil.disk_usage(place).free / 1e9
    state: _State = "good" if free > 2 else "warning"
    yield state, f"{home}, {free:.1f} GB free" + ("" if free > 2 else "; make room, a night needs about 2 GB")


def _lake(settings: Settings) -> _Look:
    from evensong.data.lake import Lake

    lake = Lake(settings.lake)
    versions = {table: lake.version(table) for table in TABLES}
    if versions["interactions"] is None:
        yield "warning", f"{settings.lake}: empty; run `evensong import …` or `evensong simulate`, then a night"
        return
    newest = str(lake.read("interactions", datetime.now(UTC))["event_timestamp"].max())
    yield "good", f"{settings.lake}: {versions}, newest event {newest[:16]}"


def _online_store(settings: Settings) -> _Look:
    from evensong.data import storage

    marker = storage.join(settings.lake, "materialized.json")
    if not storage.exists(marker):
        yield "warning", "nothing materialized yet; run `evensong nightly`"
        return
    as_of = storage.read_json(marker)["as_of"]
    from evensong.features.online import OnlineFeatures

    OnlineFeatures(settings).users(["doctor"])
    yield "good", f"{without_password(settings.online_store)}: answers, features as of {as_of}"


def _registry(settings: Settings) -> _Look:
    from evensong.registry import aliases, bundle

    champion = aliases.champion(settings)
    if champion is None:
        yield (
            "warning",
            "no champion yet; run `evensong nightly`; `evensong registry list` says what the gate kept",
        )
    else:
        bundle.fetch(settings, champion.version)
        age = (datetime.now(UTC) - champion.as_of).total_seconds() / 86400
        yield "good", f"champion is version {champion.version}, as of {champion.as_of:%Y-%m-%d} ({age:.1f} days ago)"
    state = aliases.ledger_verify(settings)
    if state.sound:
        yield "good", f"ledger of {state.lines} lines is sound"
    for problem in state.problems:
        yield "bad", f"ledger: {problem}"


def _policy(settings: Settings) -> _Look:
    from evensong.evaluation.policy import load_policy

    load_policy(Path(settings.registry.policy_path).read_text(), str(settings.registry.policy_path))
    yield "good", f"{settings.registry.policy_path} is valid"


_PIECES: dict[str, Callable[[Settings], _Look]] = {
    "python": _python,
    "home": _home,
    "lake": _lake,
    "online store": _online_store,
    "registry": _registry,
    "promotion policy": _policy,
}
