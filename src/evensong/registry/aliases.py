"""The only mover of the alias `champion`: compare and set under a lock, one ledger line a move, repaired after a kill.

A move is three writes: the intent (a tag of the registered model in MLflow), the alias, the ledger's line. Whoever
looks next, on any machine that shares the registry, finishes or forgets what a killed mover left.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from evensong.errors import BusyError, PromotionRefusedError, RegistryError
from evensong.registry import ledger, tracking, versions
from evensong.registry.ledger import Kind, Line
from evensong.registry.versions import CHAMPION, ModelVersion, champion
from evensong.settings import Settings
from evensong.types import Value

__all__ = [
    "LedgerState",
    "block",
    "champion",
    "champion_before",
    "held",
    "ledger_verify",
    "move",
    "previous_champion",
    "recent_champions",
    "recover",
    "rollback",
    "shared_lock",
]

INTENT = "evensong.intent"
HEAD = "evensong.ledger_head"
BLOCKED = "blocked"
_ANY = "any"


class LedgerState(Value):
    """What `registry ledger --verify` found."""

    sound: bool
    lines: int
    champion: str | None
    problems: list[str]


def move(
    settings: Settings,
    version: str,
    *,
    actor: str,
    reason: str,
    decision: str | None = None,
    expected_current: str | None = _ANY,
    kind: Kind = "promote",
) -> Line | None:
    """Point `champion` at the version and write the ledger's line; None when it already is the champion.

    `actor` is `person:NAME` or `rule:NAME`. A rule moves neither onto a version that was rolled back or rejected nor
    over an alias that another hand moved; a person's word does both. `expected_current` is the champion that the mover
    saw (None: there was none): if another promotion won meanwhile, this one is refused.

    Raises:
        PromotionRefusedError: the champion is not the expected one, or a rule may not make this move.
        BusyError: another move is being made.
        RegistryError: there is no such version.
    """
    if ":" not in actor:
        raise RegistryError(f"actor: expected person:NAME or rule:NAME, got {actor!r}")
    if not reason.strip():
        raise RegistryError("reason: expected some words for the ledger, got none; say why the champion moves")
    with _moving(settings):
        target = versions.get(settings, version)
        if "foreign" in target.tags:
            raise PromotionRefusedError(
                f"version {version}: was not registered by Evensong, so it holds no verified bundle; register one"
            )
        if when := target.tags.get("collected"):
            raise PromotionRefusedError(
                f"version {version}: its bundle was collected at {when}; `evensong reproduce {version}` makes it anew"
            )
        now = champion(settings)
        current = now.version if now else None
        if expected_current != _ANY and current != expected_current:
            raise PromotionRefusedError(
                f"version {version}: expected {_named(expected_current)} as champion, found {_named(current)}; "
                "another promotion came first, look at `evensong registry ledger` and decide again"
            )
        by_rule = actor.startswith("rule:")
        foreign = _foreign_move(settings, current)
        if by_rule and (word := target.tags.get(BLOCKED)):
            raise PromotionRefusedError(
                f"version {version}: {word}; only a person can promote it again: `evensong registry promote {version}`"
            )
        if by_rule and foreign:
            raise PromotionRefusedError(
                f"{foreign}; a rule does not move it on: confirm with `evensong registry promote {current or version}`"
            )
        if current == target.version and not foreign:
            return None
        line = _write_move(settings, kind, actor, current, target, decision, reason)
        if not by_rule:
            versions.delete_tag(settings, target.version, BLOCKED)
        return line


def rollback(
    settings: Settings, *, actor: str, reason: str, to: str | None = None, expected_current: str = _ANY
) -> Line:
    """Return to the previous champion, or to `to`; the version left behind is blocked until a person promotes it.

    `expected_current` is the champion that the person saw. A rollback that names it can be repeated: after a kill, or a
    second click, the line that the first one wrote is returned and nothing moves again.

    Raises:
        PromotionRefusedError: there is no earlier champion to return to, or another one than expected stands.
    """
    now = champion(settings)
    if now is None:
        raise PromotionRefusedError("rollback: expected a champion, found none; promote a version first")
    if expected_current not in (_ANY, now.version):
        if done := _rolled_back(settings, expected_current, now.version, actor, reason):
            return done
        raise PromotionRefusedError(
            f"rollback: expected version {expected_current} as champion, found version {now.version}; "
            "the champion moved meanwhile, look at `evensong registry ledger` and decide again"
        )
    target = to or previous_champion(settings, now.version)
    if target is None:
        raise PromotionRefusedError(
            f"rollback: expected a champion before version {now.version}, the ledger has none; "
            "name one with `evensong registry promote VERSION --reason WHY`"
        )
    if target == now.version:
        raise PromotionRefusedError(f"rollback: version {target} already is the champion; name an earlier one")
    # Blocked first: a crash between the two leaves a champion that a rule would not choose again, never the reverse.
    block(settings, now.version, f"rolled back by {actor}: {reason}")
    line = move(settings, target, actor=actor, reason=reason, expected_current=now.version, kind="rollback")
    assert line is not None
    return line


def block(settings: Settings, version: str, word: str) -> None:
    """Keep rules from promoting the version until a person does."""
    versions.set_tags(settings, version, {BLOCKED: word})


def champion_before(settings: Settings, as_of: datetime) -> ModelVersion | None:
    """The newest champion made by a night earlier than `as_of`: what that night's challenger is compared with.

    It follows the ledger backwards, so a rerun of an old night finds the champion that the first run found, and a
    rolled-back champion is not found again.
    """
    known = {version.version: version for version in versions.listed(settings)}
    for number in reversed(_history(settings)):
        version = known.get(number)
        if version is not None and version.as_of < as_of:
            return versions.get(settings, version.version)
    return None


def previous_champion(settings: Settings, current: str) -> str | None:
    """Where a rollback from `current` would go: the newest other champion that nobody rejected or rolled back."""
    known = {version.version: version for version in versions.listed(settings)}
    for number in reversed(_history(settings)):
        version = known.get(number)
        if number != current and version is not None and BLOCKED not in version.tags:
            return number
    return None


def recent_champions(settings: Settings, count: int = 3) -> list[str]:
    """The last champions, newest first, the present one included; a blocked one does not count."""
    recent: list[str] = []
    known = {version.version: version for version in versions.listed(settings)}
    for number in reversed(_history(settings)):
        version = known.get(number)
        if number not in recent and version is not None and BLOCKED not in version.tags:
            recent.append(number)
    return recent[:count]


def recover(settings: Settings) -> Line | None:
    """Finish or forget what a killed mover left; the line written, if one was missing.

    Raises:
        BusyError: a move is being made right now.
    """
    with tracking.locked(settings, "champion", wait_seconds=10), shared_lock(settings, "champion"):
        return _recover(settings)


def ledger_verify(settings: Settings) -> LedgerState:
    """Check the ledger's chain, its copy, what the registry remembers of it, and where the alias points."""
    with contextlib.suppress(BusyError, RegistryError):
        recover(settings)
    lines = 0
    now = champion(settings)
    current = now.version if now else None
    found = ledger.problems(settings, _model_tags(settings).get(HEAD))
    try:
        lines = len(ledger.read(settings))
        if foreign := _foreign_move(settings, current):
            found.append(foreign)
    except RegistryError as error:
        if str(error) not in found:
            found.append(str(error))
    return LedgerState(sound=not found, lines=lines, champion=current, problems=found)


@contextlib.contextmanager
def held(settings: Settings) -> Iterator[None]:
    """Hold the champion where it is.

    Raises:
        BusyError: it is being moved.
    """
    with tracking.locked(settings, "champion", wait_seconds=10), shared_lock(settings, "champion"):
        yield


@contextlib.contextmanager
def _moving(settings: Settings) -> Iterator[None]:
    with tracking.locked(settings, "champion", wait_seconds=10), shared_lock(settings, "champion"):
        _recover(settings)
        yield


@contextlib.contextmanager
def shared_lock(settings: Settings, name: str) -> Iterator[None]:
    """A lock among machines that share a PostgreSQL registry; it ends with the connection. Elsewhere nothing is held.

    Raises:
        BusyError: another machine holds it for more than ten seconds.
    """
    if not settings.tracking.startswith("postgresql"):
        yield
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(settings.tracking, poolclass=sqlalchemy.pool.NullPool)
    named = hashlib.sha256(f"evensong {settings.registry.model_name} {name}".encode()).digest()
    key = int.from_bytes(named[:7], "big")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SET lock_timeout = '10s'"))
        try:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
        except sqlalchemy.exc.OperationalError as error:
            raise BusyError(f"{name}: another machine holds it; wait until it ends and try again") from error
        yield


def _write_move(
    settings: Settings,
    kind: Kind,
    actor: str,
    current: str | None,
    target: ModelVersion,
    decision: str | None,
    reason: str,
) -> Line:
    intent = {
        "kind": kind,
        "actor": actor,
        "from_version": current,
        "to_version": target.version,
        "digest": target.digest,
        "decision": decision,
        "reason": reason[:2000],
        "move": uuid.uuid4().hex,
        "at": datetime.now(UTC).isoformat(),
    }
    _set_model_tag(settings, INTENT, json.dumps(intent, sort_keys=True))
    _set_alias(settings, target.version)
    return _finish(settings, intent)


def _recover(settings: Settings) -> Line | None:
    text = _model_tags(settings).get(INTENT)
    if not text:
        return None
    intent = json.loads(text)
    lines = ledger.read(settings)
    if lines and lines[-1].move == intent["move"]:
        _set_model_tag(settings, HEAD, ledger.head(settings))
        _set_model_tag(settings, INTENT, "")
        return None
    now = champion(settings)
    if now is None or now.version != intent["to_version"]:
        # The alias never moved (or a foreign hand moved it on): nothing of this move happened.
        _set_model_tag(settings, INTENT, "")
        return None
    return _finish(settings, intent, recovered=True)


def _finish(settings: Settings, intent: dict[str, Any], recovered: bool = False) -> Line:
    values = {**intent, "at": datetime.fromisoformat(intent["at"])}
    line = ledger.append(settings, **values, recovered=recovered)
    _set_model_tag(settings, HEAD, ledger.head(settings))
    _set_model_tag(settings, INTENT, "")
    return line


def _history(settings: Settings) -> list[str]:
    """Every version that became champion, oldest first; a hand-moved alias counts as the last move."""
    with contextlib.suppress(BusyError):
        recover(settings)
    history = [line.to_version for line in ledger.read(settings)]
    now = champion(settings)
    if now is not None and (not history or history[-1] != now.version):
        history.append(now.version)
    return history


def _rolled_back(settings: Settings, left: str, now: str, actor: str, reason: str) -> Line | None:
    """The newest line, if it is this very rollback, made before."""
    with contextlib.suppress(BusyError):
        recover(settings)
    lines = ledger.read(settings)
    same = lines and (lines[-1].kind, lines[-1].from_version, lines[-1].to_version) == ("rollback", left, now)
    return lines[-1] if same and (lines[-1].actor, lines[-1].reason) == (actor, reason) else None


def _foreign_move(settings: Settings, current: str | None) -> str | None:
    lines = ledger.read(settings)
    left_at = lines[-1].to_version if lines else None
    if left_at == current:
        return None
    return f"champion: the ledger left it at {_named(left_at)}, it points at {_named(current)}: another hand moved it"


def _set_alias(settings: Settings, version: str) -> None:
    with tracking.registry_errors(settings, f"the alias {CHAMPION}"):
        tracking.client(settings).set_registered_model_alias(settings.registry.model_name, CHAMPION, version)


def _model_tags(settings: Settings) -> dict[str, str]:
    with tracking.registry_errors(settings, settings.registry.model_name):
        name = settings.registry.model_name
        models = tracking.client(settings).search_registered_models(f"name = '{name}'")
        return dict(models[0].tags) if models else {}


def _set_model_tag(settings: Settings, key: str, value: str) -> None:
    with tracking.registry_errors(settings, settings.registry.model_name):
        client = tracking.client(settings)
        if value:
            client.set_registered_model_tag(settings.registry.model_name, key, value)
        else:
            client.delete_registered_model_tag(settings.registry.model_name, key)


def _named(version: str | None) -> str:
    return f"version {version}" if version else "no version"
