"""What a reviewer sees at one look: the champion, its history, what waits for a person, what became of each night."""

from __future__ import annotations

import contextlib
import hashlib
import json
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from evensong.errors import BundleError, BusyError, EvensongError, RegistryError, StorageError
from evensong.pipelines import dossier, review
from evensong.pipelines.policy import read_policy
from evensong.registry import aliases, ledger, versions
from evensong.registry import review as reviews
from evensong.registry.ledger import Line
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import Value

MAX_NIGHTS = 30
MAX_MOVES = 50

State = Literal["champion", "was champion", "rolled back", "rejected", "waits", "approved", "kept", "not judged"]


class Figures(Value):
    """The primary metric of one night, on the same users and events; none where there was no such model."""

    challenger: float | None = None
    champion: float | None = None
    popularity: float | None = None


class NightRow(Value):
    """One night's version, and what became of it."""

    version: str
    as_of: datetime
    created_at: datetime
    state: State
    gate: str | None
    """`promote`, `keep`, `review`; none when it was not judged."""
    reasons: list[str]
    figures: Figures
    answer: str = ""
    """Who said what in its review."""
    url: str
    has_dossier: bool
    airflow_run: str | None = None


class Gain(Value):
    """Challenger minus champion with its interval."""

    metric: str
    challenger: float | None
    champion: float | None
    mean: float | None = None
    lower: float | None = None
    upper: float | None = None


class WaitingRow(Value):
    """A review that waits, with what its reader needs."""

    version: str
    as_of: datetime
    asked_at: datetime
    deadline: datetime
    default: Literal["promote", "keep"]
    promote: bool
    """What the evidence alone says."""
    compared_with: str | None
    reasons: list[str]
    doubts: list[str]
    gains: list[Gain]
    note: str
    url: str
    has_dossier: bool


class ChampionRow(Value):
    """The version that is served."""

    version: str
    as_of: datetime
    since: datetime | None
    """When the alias came to it; none when another hand moved it there."""
    by: str
    reason: str
    figure: float | None
    """The primary metric of its own night."""
    url: str
    has_dossier: bool
    rolls_back_to: str | None
    """Where a rollback would go; none when there is nowhere."""


class Move(Value):
    """One move of the alias."""

    number: int
    at: datetime
    kind: str
    by: str
    from_version: str | None
    to_version: str
    reason: str
    as_of: datetime | None = None
    """The night of the version that became champion."""


class Overview(Value):
    """The state of the registry for people."""

    model: str
    metric: str
    mode: str
    """The policy's."""
    champion: ChampionRow | None
    waiting: list[WaitingRow]
    moves: list[Move]
    """Newest first."""
    nights: list[NightRow]
    """Newest as_of first."""
    problems: list[str] = Field(default=[])
    """What the ledger's check found."""


def overview(settings: Settings) -> Overview:
    """Look once at everything; a look settles and moves nothing.

    Raises:
        RegistryError: the registry cannot be reached.
        ConfigurationError: the policy is missing or wrong.
    """
    policy = read_policy(settings)
    metric = policy.primary.metric
    problems: list[str] = []
    try:
        problems = aliases.ledger_verify(settings).problems
    except BusyError:  # the champion is being moved; the next look will tell
        pass
    except StorageError as error:
        problems = [f"its copy cannot be compared: {error}"]
    lines: list[Line] = []
    with contextlib.suppress(EvensongError):  # `problems` says what is wrong with it
        lines = ledger.read(settings)
    listed = versions.listed(settings)
    newest = sorted(listed, key=lambda one: (one.as_of, one.number), reverse=True)[:MAX_NIGHTS]
    waiting = reviews.open_reviews(listed)
    now = [one for one in listed if versions.CHAMPION in one.aliases]
    named = {one.version: one for one in listed}
    with_figures = {one.version: one for one in versions.with_metrics(settings, [*newest, *now])}
    return Overview(
        model=settings.registry.model_name,
        metric=metric,
        mode=policy.mode,
        champion=_champion(settings, with_figures[now[0].version], lines, listed, metric) if now else None,
        waiting=[_waiting(settings, one, named[one.version]) for one in waiting],
        moves=[_move(line, named) for line in reversed(lines[-MAX_MOVES:])],
        nights=[_night(settings, with_figures[one.version], lines, metric) for one in newest],
        problems=problems,
    )


def dossier_of(settings: Settings, version: str) -> bytes:
    """The version's dossier as a page.

    Raises:
        RegistryError: there is no such version, or it has none.
        BundleError: it is not the one whose hash the version's tags hold.
    """
    found = versions.get(settings, version)
    if not _has_dossier(found):
        raise RegistryError(f"version {found.version}: expected a dossier, found none; the gate writes it")
    return _verified(settings, found, dossier.PAGE, "dossier_hash")


def _champion(
    settings: Settings, now: ModelVersion, lines: list[Line], listed: list[ModelVersion], metric: str
) -> ChampionRow:
    last = lines[-1] if lines and lines[-1].to_version == now.version else None
    if last is not None:
        # A line that only acknowledges where the alias stands did not bring it there.
        came = [line for line in lines if line.to_version == now.version != line.from_version]
        last = came[-1] if came else last
    return ChampionRow(
        version=now.version,
        as_of=now.as_of,
        since=last.at if last else None,
        by=last.actor if last else "another hand",
        reason=last.reason if last else "",
        figure=now.metrics.get(f"challenger.{metric}"),
        url=review.version_page(settings, now.version),
        has_dossier=_has_dossier(now),
        rolls_back_to=next((one for one in aliases.returnable(lines, listed) if one != now.version), None),
    )


def _waiting(settings: Settings, one: reviews.Waiting, version: ModelVersion) -> WaitingRow:
    said, problem = _dossier(settings, version)
    decision = said.get("decision", {})
    compared = version.tags.get("compared_with", "none")
    doubts = [check["message"] for check in decision.get("checks", []) if check.get("doubtful")]
    return WaitingRow(
        version=version.version,
        as_of=version.as_of,
        asked_at=one.asked_at,
        deadline=one.deadline,
        default=one.default,
        promote=bool(decision.get("promote")),
        compared_with=None if compared == "none" else compared,
        reasons=one.reasons,
        doubts=[problem, *doubts] if problem else doubts,
        gains=[_gain(row) for row in said.get("metrics", [])],
        note=one.note,
        url=review.version_page(settings, version.version),
        has_dossier=_has_dossier(version),
    )


def _gain(row: dict[str, Any]) -> Gain:
    bounds = row.get("gain") or {}
    return Gain(
        metric=row["name"],
        challenger=row.get("challenger"),
        champion=row.get("champion"),
        mean=bounds.get("mean"),
        lower=bounds.get("lower"),
        upper=bounds.get("upper"),
    )


#: Dossiers as data by registry, version and hash: a page that stays open asks for the same ones every few seconds.
_read: dict[tuple[str, str, str], dict[str, Any]] = {}
_MAX_READ = 64


def _dossier(settings: Settings, version: ModelVersion) -> tuple[dict[str, Any], str]:
    """The dossier as data, and what is wrong with it; nothing where the version has none that can be believed."""
    key = (settings.tracking, version.version, version.tags.get("dossier_json_hash", ""))
    if key in _read:
        return _read[key], ""
    try:
        found: dict[str, Any] = json.loads(_verified(settings, version, dossier.DATA, "dossier_json_hash"))
    except BundleError as error:
        return {}, str(error)
    except EvensongError:
        return {}, ""
    if len(_read) >= _MAX_READ:
        _read.clear()
    _read[key] = found
    return found, ""


def _verified(settings: Settings, version: ModelVersion, name: str, tag: str) -> bytes:
    content = versions.read_attached(settings, version, name)
    expected, found = version.tags.get(tag, ""), hashlib.sha256(content).hexdigest()
    if found != expected:
        raise BundleError(
            f"version {version.version}: {name} should hash to {expected[:12]}…, found {found[:12]}…; it was edited; "
            "do not decide by it: the run's folder holds the one that the gate wrote"
        )
    return content


def _night(settings: Settings, version: ModelVersion, lines: list[Line], metric: str) -> NightRow:
    tags, figures = version.tags, version.metrics
    return NightRow(
        version=version.version,
        as_of=version.as_of,
        created_at=version.created_at,
        state=_state(version, lines),
        gate=tags.get("gate"),
        reasons=[line for line in tags.get("gate_reasons", "").split("\n") if line],
        figures=Figures(
            **{model: figures.get(f"{model}.{metric}") for model in ("challenger", "champion", "popularity")}
        ),
        answer=_answer(version),
        url=review.version_page(settings, version.version),
        has_dossier=_has_dossier(version),
        airflow_run=tags.get("airflow_run"),
    )


def _state(version: ModelVersion, lines: list[Line]) -> State:
    if versions.CHAMPION in version.aliases:
        return "champion"
    if word := version.tags.get(aliases.BLOCKED):
        return "rolled back" if word.startswith("rolled back") else "rejected"
    if any(line.to_version == version.version for line in lines):
        return "was champion"
    if reviews.is_waiting(version):
        return "waits"
    if answer := reviews.answer_of(version):
        return answer.outcome
    return "kept" if "gate" in version.tags else "not judged"


def _answer(version: ModelVersion) -> str:
    answer = reviews.answer_of(version)
    return f"{answer.outcome} by {answer.by} ({answer.via}): {answer.comment}" if answer else ""


def _move(line: Line, named: dict[str, ModelVersion]) -> Move:
    return Move(
        number=line.number,
        at=line.at,
        kind=line.kind,
        by=line.actor,
        from_version=line.from_version,
        to_version=line.to_version,
        reason=line.reason,
        as_of=named[line.to_version].as_of if line.to_version in named else None,
    )


def _has_dossier(version: ModelVersion) -> bool:
    return "dossier_hash" in version.tags
