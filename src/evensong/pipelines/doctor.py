"""What is wrong here and what to do about it: one finding a piece."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from evensong.data import storage
from evensong.errors import BundleError, EvensongError, SourceError
from evensong.settings import Settings, without_password
from evensong.types import TABLES, Value

State = Literal["good", "warning", "bad"]
#: What one look at a piece yields: how it is, and a message that says what to do where it is not good.
Look = Iterator[tuple[State, str]]

NIGHT_GIGABYTES = 2.0
#: A night that has held the home for so long hangs more probably than it works.
LONG_NIGHT = timedelta(hours=12)


class Finding(Value):
    """One piece, how it is, and what to do."""

    piece: str
    state: State
    message: str


def examine(settings: Settings, also: Mapping[str, Callable[[Settings], Look]] | None = None) -> list[Finding]:
    """Look at every piece, and at those of `also`; one that cannot be looked at is a finding, never an error."""
    findings = []
    for piece, look in {**_PIECES, **(also or {})}.items():
        try:
            for state, message in look(settings):
                findings.append(Finding(piece=piece, state=state, message=message))
        except EvensongError as error:
            findings.append(Finding(piece=piece, state="bad", message=str(error)))
        except Exception as error:  # the doctor reports whatever a broken piece throws
            text = without_password(f"{type(error).__name__}: {error}".splitlines()[0])
            findings.append(Finding(piece=piece, state="bad", message=text))
    return findings


def _python(settings: Settings) -> Look:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        yield "good", f"Python {version}"
    else:
        yield "bad", f"expected Python 3.11, got {version}; run `make install`"


def _home(settings: Settings) -> Look:
    from evensong.pipelines import tidy

    home = Path(settings.place())
    place = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(place, os.W_OK):
        yield "bad", f"{home} cannot be written; correct its rights, or set EVENSONG_HOME to a folder that can"
        return
    free = shutil.disk_usage(place).free / 1e9
    advice = f"a night needs about {NIGHT_GIGABYTES:g} GB: make room, `evensong registry collect` names old bundles"
    if free < NIGHT_GIGABYTES:
        yield "bad" if free < NIGHT_GIGABYTES / 4 else "warning", f"{home}: {free:.1f} GB free; {advice}"
    else:
        yield "good", f"{home}, {free:.1f} GB free"
    if left := tidy.drafts(settings):
        yield "good", f"{len(left)} drafts of killed steps, such as {left[0]}; the next night removes them"


def _memory(settings: Settings) -> Look:
    import psutil

    free = psutil.virtual_memory().available / 1e9
    if free < NIGHT_GIGABYTES / 2:
        advice = "end what else runs, or lower EVENSONG_SPLIT__MAX_EXAMPLES"
        yield "warning", f"{free:.1f} GB available; a night may be killed for want of it: {advice}"
    else:
        yield "good", f"{free:.1f} GB available"


def _sources(settings: Settings) -> Look:
    from evensong.data import sources

    known = sources.registered(settings.lake)
    if not known:
        yield "warning", "none registered; run `evensong import …` or `evensong simulate`"
    for source in known.values():
        try:
            files = sources.fingerprints(source)
        except SourceError as error:
            yield "bad", f"{source.name}: {error}; until it is back, every night that reads it stops at `ingest`"
            continue
        what = "read anew each night" if files is None else f"{len(files)} files"
        yield "good", f"{source.name}: {source.location}, {what}"


def _lake(settings: Settings) -> Look:
    from evensong.data.lake import Lake

    lake = Lake(settings.lake)
    versions = {table: lake.version(table) for table in TABLES}
    if versions["interactions"] is None:
        yield "warning", f"{settings.lake}: empty; run `evensong import …` or `evensong simulate`, then a night"
        return
    told = ", ".join(f"{table} {'none' if version is None else version}" for table, version in versions.items())
    yield "good", f"{settings.lake}: versions {told}; newest event {str(_newest_event(settings))[:16]}"


def _newest_event(settings: Settings) -> datetime | None:
    """Of those that have come in, judged or not: a night that validation stops leaves its events unjudged."""
    import polars as pl

    from evensong.data.lake import RAW, Lake

    times = Lake(settings.lake).scan(RAW + "interactions", datetime.now(UTC)).select(pl.col("event_timestamp").max())
    newest: datetime | None = times.collect().item()
    return newest


def _online_store(settings: Settings) -> Look:
    from evensong.features.online import OnlineFeatures
    from evensong.pipelines.features import materialized_at

    as_of = materialized_at(settings)
    if as_of is None:
        yield "warning", "nothing materialized yet; run `evensong nightly --as-of DATE`"
        return
    try:
        OnlineFeatures(settings).users(["doctor"])
    except Exception as error:
        place = without_password(settings.online_store)
        yield "bad", f"{place} does not answer ({type(error).__name__}: {error}); start it, popular items are served"
        return
    newest = _newest_event(settings)
    told = f"{without_password(settings.online_store)}: answers, features as of {as_of:%Y-%m-%d %H:%M}"
    if newest is not None and newest - as_of > timedelta(days=1):
        behind = (newest - as_of).total_seconds() / 86_400
        advice = f"did a night fail? Look in Airflow, or run `evensong nightly --as-of {newest:%Y-%m-%d}`"
        yield "warning", f"{told}, {behind:.1f} days behind the newest event that has come in; {advice}"
    else:
        yield "good", told


def _registry(settings: Settings) -> Look:
    from evensong.registry import aliases, bundle

    champion = aliases.champion(settings)
    if champion is None:
        yield (
            "warning",
            "no champion yet; run `evensong nightly`; `evensong registry list` says what the gate kept",
        )
        return
    directory = bundle.fetch(settings, champion.version)
    try:
        _check_champion(settings, directory, bundle.read_manifest(directory).get("features"))
    except BundleError as error:
        advice = "make a version of these features champion: `evensong registry promote VERSION --reason WHY`"
        yield "bad", f"the champion, version {champion.version}, cannot answer from this store: {error}; or {advice}"
        return
    age = (datetime.now(UTC) - champion.as_of).total_seconds() / 86400
    yield "good", f"champion is version {champion.version}, as of {champion.as_of:%Y-%m-%d} ({age:.1f} days ago)"


def _check_champion(settings: Settings, directory: Path, features: Any) -> None:
    """Hold what the champion was trained on, and reads, against what the online store holds, as the service does."""
    from evensong.features.dictionary import build_dictionary, check_served
    from evensong.features.model_columns import ModelColumns
    from evensong.features.shop_columns import check_read
    from evensong.models.saved import COLUMNS
    from evensong.pipelines.features import MATERIALIZED

    marker = storage.join(settings.lake, MATERIALIZED)
    filled = storage.read_json(marker).get("features") if storage.exists(marker) else None
    if isinstance(features, dict):
        check_served(features, filled or build_dictionary(settings))
    if (columns := directory / "retriever" / COLUMNS).is_dir():
        check_read(ModelColumns.load(columns).reads, settings.features)


def _ledger(settings: Settings) -> Look:
    from evensong.registry import aliases

    state = aliases.ledger_verify(settings)
    if state.sound:
        yield "good", f"{state.lines} lines, sound"
    advice = "put the file back from a copy, and confirm the champion: `evensong registry promote VERSION --reason WHY`"
    for problem in state.problems:
        yield "bad", f"{problem}; find out who did it, {advice}"


def _reviews(settings: Settings) -> Look:
    from evensong.registry import review, versions

    waiting = review.open_reviews(versions.listed(settings))
    if not waiting:
        yield "good", "none waits for a person"
    for one in waiting:
        told = f"version {one.version} waits for a person, its deadline"
        until = f"{one.deadline:%Y-%m-%d %H:%M} UTC"
        if one.deadline > datetime.now(UTC):
            yield "good", f"{told} is {until}"
        else:
            comes_to = "promotes it" if one.default == "promote" else "keeps the champion"
            advice = f"`evensong registry reviews` settles it, and so does the next night: silence {comes_to}"
            yield "warning", f"{told} was {until} and nothing has looked since; {advice}"


def _nights(settings: Settings) -> Look:
    from evensong.pipelines.night import holder
    from evensong.registry import tracking

    if held := holder(settings):
        process, since = held
        told = f"a night is at work: process {process} holds the home since {since:%Y-%m-%d %H:%M} UTC"
        if datetime.now(UTC) - since > LONG_NIGHT:
            yield (
                "warning",
                f"{told}; if it hangs, end that process: the night goes on where it stood when it runs again",
            )
        else:
            yield "good", told
        return
    unfinished = tracking.unfinished(settings)
    if not unfinished:
        yield "good", "none is at work, none was left unfinished"
    told = "is not finished, and nothing is at work at this moment: it is between two tasks, waits for a review"
    advice = "(`evensong registry reviews`), or was killed: clear its task in Airflow, or run it again"
    for night in unfinished:
        yield "warning", f"{night} {told} {advice}"


def _policy(settings: Settings) -> Look:
    from evensong.pipelines.policy import read_policy

    policy = read_policy(settings)
    yield "good", f"{settings.registry.policy_path} is valid, mode {policy.mode}"


_PIECES: dict[str, Callable[[Settings], Look]] = {
    "python": _python,
    "home": _home,
    "memory": _memory,
    "sources": _sources,
    "lake": _lake,
    "online store": _online_store,
    "registry": _registry,
    "ledger": _ledger,
    "reviews": _reviews,
    "nights": _nights,
    "promotion policy": _policy,
}
