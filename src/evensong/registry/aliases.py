"""The only mover of the alias `champion`: compare and set under a lock, one ledger line a move, repaired after a kill.

A move is a few writes: the intent (a tag of the registered model in MLflow), the alias, the ledger's line, the word on
the version that a rollback left. Whoever looks next, on any machine that shares the registry, finishes or forgets what
a killed mover left.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from evensong.errors import BundleError, BusyError, PromotionRefusedError, RegistryError
from evensong.registry import bundle, ledger, locks, tracking, versions
from evensong.registry.ledger import Kind, Line
from evensong.registry.versions import CHAMPION, COLLECTED, FOREIGN, RECIPE, ModelVersion, champion
from evensong.settings import Settings
from evensong.types import Value

__all__ = [
    "LedgerState",
    "adopt",
    "block",
    "champion",
    "champion_before",
    "held",
    "ledger_verify",
    "move",
    "previous_champion",
    "recent_champions",
    "recover",
    "returnable",
    "rival",
    "rollback",
]

INTENT = "evensong.intent"
HEAD = "evensong.ledger_head"
BLOCKED = "blocked"
_ANY = "any"
#: Characters that MLflow's tables hold of a registered model's tag, and that an actor's name may take of it.
_MAX_TAG, _MAX_ACTOR = 5000, 200
#: A check that meets a move looks again, so often.
_LOOKS = 5


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
    move_id: str | None = None,
    despite: str | None = None,
) -> Line | None:
    """Point `champion` at the version and write the ledger's line; None when there is nothing to do.

    `actor` is `person:NAME` or `rule:NAME`. A rule moves neither onto a version that was rolled back or rejected, nor
    over an alias that another hand moved, nor on top of a ledger with a problem; a person's word does.
    `expected_current` is the champion that the mover saw (None: there was none): if another promotion won meanwhile,
    this one is refused. `move_id` names a word that was given before, such as a review's answer: it is carried out
    once, and not over a block that came after it; `despite` is the block that it was given in spite of.

    Raises:
        PromotionRefusedError: the champion is not the expected one, or a rule may not make this move.
        BusyError: another move is being made.
        RegistryError: there is no such version, or the reason is none or too long.
    """
    if ":" not in actor or len(actor) > _MAX_ACTOR:
        raise RegistryError(f"actor: expected person:NAME or rule:NAME of at most {_MAX_ACTOR} letters, got {actor!r}")
    by_rule = actor.startswith("rule:")
    said = ledger.checked_reason(_shortened(reason) if by_rule else reason)
    with _moving(settings):
        target = versions.get(settings, version)
        _refuse_without_bundle(target)
        model, lines = _model(settings), ledger.read(settings)
        current, left_at = model.champion, lines[-1].to_version if lines else None
        word = target.tags.get(BLOCKED)
        if move_id and (any(line.move == move_id for line in lines) or (word and word != despite)):
            return None
        if expected_current not in (_ANY, current):
            raise PromotionRefusedError(
                f"version {version}: expected {_named(expected_current)} as champion, found {_named(current)}; "
                "another promotion came first, look at `evensong registry ledger` and decide again"
            )
        if by_rule and word:
            raise PromotionRefusedError(
                f"version {version}: {word}; only a person can promote it again: `evensong registry promote {version}`"
            )
        if current == target.version == left_at:
            if word:
                versions.delete_tag(settings, target.version, BLOCKED)
            return None
        if by_rule:
            _refuse_with_problems(settings, model, left_at)
        writes = _Writes(settings, actor, model.head)
        settled: list[str] = []
        if current != left_at and current is not None:
            line = writes.adopt(left_at, versions.get(settings, current), said)
            if current == target.version:
                return line
        elif current != left_at:
            # Another hand took the alias away: the line goes on from where the ledger left it.
            settled = [ledger.foreign(left_at, None)]
        return writes.move(kind, left_at if settled else current, target, decision, said, move_id, settled)


def rollback(
    settings: Settings, *, actor: str, reason: str, to: str | None = None, expected_current: str = _ANY
) -> Line:
    """Return to the previous champion, or to an earlier one, `to`.

    The version left behind is blocked until a person promotes it.
    The bundle is fetched and verified before anything moves. `expected_current` is the champion that the person saw. A
    rollback that names it can be repeated: after a kill, or a second click, the line that the first one wrote is
    returned and nothing moves again.

    Raises:
        PromotionRefusedError: there is no earlier champion to return to, `to` never was one, another one than expected
            stands, or the bundle to return to cannot be had.
    """
    said = ledger.checked_reason(reason)
    now = champion(settings)
    if now is None:
        raise PromotionRefusedError("rollback: expected a champion, found none; promote a version first")
    if expected_current not in (_ANY, now.version):
        if done := _rolled_back(settings, expected_current, now.version, actor, said):
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
    _refuse_without_bundle(versions.get(settings, target))
    if to is not None and to not in _history(settings, versions.listed(settings)):
        raise PromotionRefusedError(
            f"rollback: version {to} never was the champion, so there is no way back to it; "
            f"use `evensong registry promote {to} --reason WHY`"
        )
    try:
        bundle.fetch(settings, target)
    except (BundleError, RegistryError) as error:
        raise PromotionRefusedError(
            f"rollback: the bundle of version {target} cannot be had, so nothing was moved: {error}; "
            "name another version with `evensong registry rollback --to VERSION`"
        ) from error
    line = move(settings, target, actor=actor, reason=said, expected_current=now.version, kind="rollback")
    assert line is not None
    return line


def adopt(settings: Settings, *, actor: str, reason: str) -> Line | None:
    """Acknowledge where another hand moved the alias, and what the ledger's check finds; None when all is sound.

    Nothing moves. The line keeps what was found, the check no longer reports it, and rules may move the alias again.

    Raises:
        PromotionRefusedError: there is no champion to acknowledge.
        BusyError: a move is being made.
        RegistryError: a line cannot be read, the reason is none or too long, or too much was found for one line.
    """
    said = ledger.checked_reason(reason)
    with _moving(settings):
        model, lines = _model(settings), ledger.read(settings)
        found = [*ledger.problems(settings, model.head), *ledger.rest(settings)]
        left_at = lines[-1].to_version if lines else None
        if not found and model.champion == left_at:
            return None
        if model.champion is None:
            raise PromotionRefusedError("adopt: expected a champion, found none; promote a version first")
        writes = _Writes(settings, actor, model.head)
        return writes.adopt(left_at, versions.get(settings, model.champion), said, found)


def block(settings: Settings, version: str, word: str) -> None:
    """Keep rules from promoting the version until a person does.

    Raises:
        PromotionRefusedError: it is the champion.
        BusyError: the champion is being moved.
    """
    with _moving(settings):
        now = _model(settings).champion
        if now == version:
            raise PromotionRefusedError(f"version {version} is the champion; use `evensong registry rollback` instead")
        versions.set_tags(settings, version, {BLOCKED: word})


def champion_before(settings: Settings, as_of: datetime) -> ModelVersion | None:
    """The newest champion made by a night earlier than `as_of`, following the ledger backwards.

    A rolled-back champion is not found again, nor one whose bundle the retention rule has collected.
    """
    known = {version.version: version for version in versions.listed(settings)}
    history = _history(settings, known.values())
    return _newest(settings, history, known, lambda version: version.as_of < as_of)


def rival(settings: Settings, as_of: datetime, recipe: str, version: str | None = None) -> ModelVersion | None:
    """The champion that a run of the night is compared with: the newest of no later night, before the run made one.

    Another run of the same night, by seed, settings, code or data, may have made the champion, and then it is the one.
    What this run itself made (its `recipe`, or the `version` that it registered) is passed over with all that came
    after it, so a rerun finds the champion that its first run found. One whose bundle the retention rule has collected
    cannot be compared with: the one before it is.
    """
    known = {one.version: one for one in versions.listed(settings)}
    history = _history(settings, known.values())
    own = {
        one.version
        for one in known.values()
        if one.version == version or (one.as_of == as_of and one.tags.get(RECIPE) == recipe)
    }
    first = next((place for place, number in enumerate(history) if number in own), len(history))
    return _newest(settings, history[:first], known, lambda one: one.as_of <= as_of)


def previous_champion(settings: Settings, current: str) -> str | None:
    """Where a rollback from `current` would go: the newest other champion that nobody rejected or rolled back."""
    return next((number for number in recent_champions(settings, None) if number != current), None)


def recent_champions(settings: Settings, count: int | None = 3) -> list[str]:
    """The last champions that can be returned to, newest first, the present one included; None: all of them."""
    recover_quietly(settings)
    return returnable(ledger.read(settings), versions.listed(settings))[:count]


def returnable(lines: Sequence[Line], listed: Sequence[ModelVersion]) -> list[str]:
    """The champions by these lines, newest first, each once, without those that are blocked or hold no bundle."""
    known = {version.version: version for version in listed}
    history = reversed(_numbers(lines, listed))
    return [
        number
        for number in dict.fromkeys(history)
        if number in known and known[number].has_bundle and BLOCKED not in known[number].tags
    ]


def recover(settings: Settings) -> Line | None:
    """Finish or forget what a killed mover left; the line written, if one was missing.

    Raises:
        BusyError: a move is being made right now.
    """
    if not _model(settings).intent:
        return None
    with locks.held(settings, CHAMPION):
        return _recover(settings)


def recover_quietly(settings: Settings) -> None:
    """Finish what a killed mover left, unless somebody moves the champion right now or the ledger cannot be read."""
    with contextlib.suppress(BusyError, RegistryError):
        recover(settings)


def ledger_verify(settings: Settings) -> LedgerState:
    """Check the ledger's chain, its copy, what MLflow remembers of it, and where the alias points.

    Raises:
        BusyError: the champion is being moved, again and again.
    """
    for _ in range(_LOOKS):
        unfinished = False
        try:
            recover(settings)
        except RegistryError:  # a line cannot be read, as the check will say
            unfinished = True
        before = _model(settings)
        found = [*ledger.problems(settings, before.head), *ledger.rest(settings)]
        left_at, count = ledger.end(settings)
        # Nothing moved meanwhile: what was read belongs together, and no mover was held up for it.
        if _model(settings) == before and (unfinished or not before.intent):
            if before.champion != left_at and count is not None:
                found.append(ledger.foreign(left_at, before.champion))
            return LedgerState(sound=not found, lines=count or 0, champion=before.champion, problems=found)
    raise BusyError("champion: it is being moved; wait until that ends and try again")


@contextlib.contextmanager
def held(settings: Settings) -> Iterator[None]:
    """Hold the champion where it is.

    Raises:
        BusyError: it is being moved.
    """
    with locks.held(settings, CHAMPION):
        yield


@contextlib.contextmanager
def _moving(settings: Settings) -> Iterator[None]:
    with locks.held(settings, CHAMPION):
        _recover(settings)
        yield


class _Model(NamedTuple):
    """What MLflow keeps of the registered model, read at once."""

    champion: str | None
    head: str
    intent: str


def _model(settings: Settings) -> _Model:
    with tracking.registry_errors(settings, settings.registry.model_name):
        name = settings.registry.model_name
        models = tracking.client(settings).search_registered_models(f"name = '{name}'")
    if not models:
        return _Model(None, "", "")
    tags, version = models[0].tags, models[0].aliases.get(CHAMPION)
    return _Model(None if version is None else str(version), tags.get(HEAD, ""), tags.get(INTENT, ""))


class _Writes:
    """The moves of one actor under the lock, each with what MLflow remembered of the ledger before it."""

    def __init__(self, settings: Settings, actor: str, anchor: str) -> None:
        self._settings, self._actor, self._anchor = settings, actor, anchor

    def move(
        self,
        kind: Kind,
        current: str | None,
        target: ModelVersion,
        decision: str | None,
        reason: str,
        move_id: str | None = None,
        acknowledged: Sequence[str] = (),
    ) -> Line:
        intent = {
            "kind": kind,
            "actor": self._actor,
            "from_version": current,
            "to_version": target.version,
            "digest": target.digest,
            "decision": decision,
            "reason": reason,
            "move": move_id or uuid.uuid4().hex,
            "at": datetime.now(UTC).isoformat(),
            "anchor": self._anchor,
            "acknowledged": list(acknowledged),
        }
        text = json.dumps(intent, sort_keys=True, ensure_ascii=False)
        if len(text) > _MAX_TAG:
            raise RegistryError(
                f"champion: expected a move of at most {_MAX_TAG:,} characters with its reason and what it "
                f"acknowledges, got {len(text):,}; say it shorter, or restore the ledger from its copy first"
            )
        _set_model_tag(self._settings, INTENT, text)
        if kind != "adopt":
            _set_alias(self._settings, target.version)
        line = _finish(self._settings, intent)
        self._anchor = ledger.head(self._settings)
        return line

    def adopt(self, left_at: str | None, found: ModelVersion, reason: str, problems: Sequence[str] = ()) -> Line:
        gap = [ledger.foreign(left_at, found.version)] if left_at != found.version else []
        return self.move("adopt", left_at, found, None, reason, acknowledged=[*problems, *gap])


def _refuse_without_bundle(version: ModelVersion) -> None:
    if FOREIGN in version.tags:
        raise PromotionRefusedError(
            f"version {version.version}: was not registered by Evensong, so it holds no verified bundle; register one"
        )
    if when := version.tags.get(COLLECTED):
        raise PromotionRefusedError(
            f"version {version.version}: its bundle was collected at {when}; "
            f"`evensong reproduce {version.version}` makes it anew and puts it back"
        )


def _refuse_with_problems(settings: Settings, model: _Model, left_at: str | None) -> None:
    found = ledger.problems(settings, model.head)
    if model.champion != left_at:
        found.append(ledger.foreign(left_at, model.champion))
    if found:
        raise PromotionRefusedError(
            f"{found[0]}; no rule moves the champion on: look at `evensong registry ledger --verify`, and confirm with "
            "`evensong registry adopt --reason WHY` or move it yourself with `evensong registry promote`"
        )


def _recover(settings: Settings) -> Line | None:
    model = _model(settings)
    if not model.intent:
        return None
    intent = json.loads(model.intent)
    lines = ledger.read(settings)
    if lines and lines[-1].move == intent["move"]:
        newest = lines[-1].model_dump(mode="json")
        if all(newest[name] == value for name, value in intent.items() if name != "at"):
            _seal(settings, lines[-1])
        else:
            # Edited since it was written: MLflow goes on remembering the line before, and the check tells.
            _set_model_tag(settings, INTENT, "")
        return None
    if model.champion != intent["to_version"]:
        # The alias never moved (or a foreign hand moved it on): nothing of this move happened.
        _set_model_tag(settings, INTENT, "")
        return None
    return _finish(settings, intent, recovered=True)


def _finish(settings: Settings, intent: dict[str, Any], recovered: bool = False) -> Line:
    values = {**intent, "at": datetime.fromisoformat(intent["at"])}
    line = ledger.append(settings, **values, recovered=recovered)
    _seal(settings, line)
    return line


def _seal(settings: Settings, line: Line) -> None:
    """What follows from the newest line; the intent goes last, so that a kill leaves nothing of it undone."""
    if line.kind == "rollback" and line.from_version:
        versions.set_tags(settings, line.from_version, {BLOCKED: f"rolled back by {line.actor}: {line.reason}"})
    if not line.actor.startswith("rule:"):
        versions.delete_tag(settings, line.to_version, BLOCKED)
    _set_model_tag(settings, HEAD, ledger.head(settings))
    _set_model_tag(settings, INTENT, "")


def _history(settings: Settings, listed: Collection[ModelVersion]) -> list[str]:
    """Every version that became champion, oldest first; a hand-moved alias counts as the last move."""
    recover_quietly(settings)
    return _numbers(ledger.read(settings), listed)


def _numbers(lines: Sequence[Line], listed: Collection[ModelVersion]) -> list[str]:
    history = [line.to_version for line in lines]
    now = next((version.version for version in listed if CHAMPION in version.aliases), None)
    return history if now is None or history[-1:] == [now] else [*history, now]


def _newest(
    settings: Settings,
    history: Sequence[str],
    known: Mapping[str, ModelVersion],
    matches: Callable[[ModelVersion], bool],
) -> ModelVersion | None:
    for number in reversed(history):
        version = known.get(number)
        if version is not None and version.has_bundle and matches(version):
            return versions.get(settings, number)
    return None


def _rolled_back(settings: Settings, left: str, now: str, actor: str, reason: str) -> Line | None:
    """The newest line, if it is this very rollback, made before."""
    recover_quietly(settings)
    lines = ledger.read(settings)
    same = lines and (lines[-1].kind, lines[-1].from_version, lines[-1].to_version) == ("rollback", left, now)
    return lines[-1] if same and (lines[-1].actor, lines[-1].reason) == (actor, reason) else None


def _set_alias(settings: Settings, version: str) -> None:
    with tracking.registry_errors(settings, f"the alias {CHAMPION}"):
        tracking.client(settings).set_registered_model_alias(settings.registry.model_name, CHAMPION, version)


def _set_model_tag(settings: Settings, key: str, value: str) -> None:
    with tracking.registry_errors(settings, settings.registry.model_name):
        client = tracking.client(settings)
        if value:
            client.set_registered_model_tag(settings.registry.model_name, key, value)
        else:
            client.delete_registered_model_tag(settings.registry.model_name, key)


def _shortened(reason: str) -> str:
    """A rule's words are many checks' words: what is too long for a line ends with dots."""
    room = ledger.MAX_REASON // 2
    return reason if len(reason) <= room else reason[: room - 1] + "…"


def _named(version: str | None) -> str:
    return f"version {version}" if version else "no version"
