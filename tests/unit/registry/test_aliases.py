"""The champion: moved by one hand, one ledger line a move, consistent after any crash."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from tests.unit.registry.conftest import Register, night

from evensong.errors import PromotionRefusedError, RegistryError
from evensong.registry import aliases, ledger, tracking, versions
from evensong.settings import Settings


@pytest.fixture
def three(register: Register) -> None:
    for day in (1, 2, 3):
        register(day=day)


def promote(settings: Settings, version: str, actor: str = "rule:gate", **more: object) -> ledger.Line | None:
    return aliases.move(settings, version, actor=actor, reason=f"to {version}", **more)  # type: ignore[arg-type]


def current(settings: Settings) -> str | None:
    now = aliases.champion(settings)
    return now.version if now else None


def test_move_points_the_alias_and_writes_one_line(settings: Settings, three: None) -> None:
    line = promote(settings, "1", decision="abc")
    assert current(settings) == "1"
    assert line is not None
    assert (line.from_version, line.to_version, line.decision, line.previous) == (None, "1", "abc", ledger.GENESIS)
    promote(settings, "2")
    first, second = ledger.read(settings)
    assert (second.from_version, second.to_version) == ("1", "2")
    assert second.previous == ledger.hash_of(ledger.path_of(settings).read_text().splitlines()[0])
    assert first.number == 1
    assert aliases.ledger_verify(settings).sound


def test_moving_to_the_champion_changes_nothing(settings: Settings, three: None) -> None:
    promote(settings, "1")
    assert promote(settings, "1") is None
    assert len(ledger.read(settings)) == 1


def test_of_two_promotions_at_once_exactly_one_wins(settings: Settings, three: None) -> None:
    promote(settings, "1")
    start = threading.Barrier(2)
    outcomes: dict[str, object] = {}

    def race(version: str) -> None:
        start.wait()
        try:
            outcomes[version] = promote(settings, version, expected_current="1")
        except PromotionRefusedError as error:
            outcomes[version] = error

    threads = [threading.Thread(target=race, args=(version,)) for version in ("2", "3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lost = [outcome for outcome in outcomes.values() if isinstance(outcome, PromotionRefusedError)]
    assert len(lost) == 1
    assert "another promotion came first" in str(lost[0])
    assert len(ledger.read(settings)) == 2
    assert aliases.ledger_verify(settings).sound


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, module: object, name: str, after: bool = False) -> None:
    real: Callable[..., object] = getattr(module, name)

    def die(*arguments: object, **values: object) -> object:
        if after:
            real(*arguments, **values)
        raise Killed

    monkeypatch.setattr(module, name, die)


@pytest.mark.parametrize(
    ("module", "name", "after", "moved"),
    [
        (aliases, "_set_alias", False, False),
        (aliases, "_set_alias", True, True),
        (ledger, "append", False, True),
        (ledger, "append", True, True),
        (ledger, "head", False, True),
    ],
)
def test_mover_killed_at_any_write_is_repaired_by_the_next_command(
    settings: Settings,
    three: None,
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    name: str,
    after: bool,
    moved: bool,
) -> None:
    promote(settings, "1")
    with monkeypatch.context() as patch:
        kill_at(patch, module, name, after)
        with pytest.raises(Killed):
            promote(settings, "2")
    aliases.recover(settings)
    state = aliases.ledger_verify(settings)
    assert (state.sound, state.problems) == (True, [])
    assert current(settings) == ("2" if moved else "1")
    assert [line.to_version for line in ledger.read(settings)] == (["1", "2"] if moved else ["1"])
    promote(settings, "3")
    assert ledger.read(settings)[-1].from_version == ("2" if moved else "1")


def test_half_a_line_of_a_killed_writer_never_was_one(settings: Settings, three: None) -> None:
    promote(settings, "1")
    with ledger.path_of(settings).open("a") as file:
        file.write('{"number": 2, "at": "20')
    promote(settings, "2")
    assert [line.number for line in ledger.read(settings)] == [1, 2]
    assert aliases.ledger_verify(settings).sound


def test_alias_moved_by_another_hand_is_found_and_no_rule_moves_it_on(settings: Settings, three: None) -> None:
    promote(settings, "1")
    tracking.client(settings).set_registered_model_alias("recommender", "champion", "3")
    state = aliases.ledger_verify(settings)
    assert not state.sound
    assert state.problems == [
        "champion: the ledger left it at version 1, it points at version 3: another hand moved it"
    ]
    with pytest.raises(PromotionRefusedError, match="another hand moved it; a rule does not move it on"):
        promote(settings, "2")
    promote(settings, "2", actor="person:ada")
    assert current(settings) == "2"
    assert "another hand moved it in between" in aliases.ledger_verify(settings).problems[0]


def edit(settings: Settings, number: int, **changes: object) -> None:
    path = ledger.path_of(settings)
    lines = path.read_text().splitlines()
    lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | changes, sort_keys=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_edited_line_is_found_wherever_it_stands(settings: Settings, three: None, number: int) -> None:
    for version in ("1", "2", "3"):
        promote(settings, version)
    assert aliases.ledger_verify(settings).sound
    edit(settings, number, reason="it was not me")
    found = aliases.ledger_verify(settings)
    assert not found.sound
    assert any(f"line {number}" in problem for problem in found.problems)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_removed_line_is_found_wherever_it_stood(settings: Settings, three: None, number: int) -> None:
    for version in ("1", "2", "3"):
        promote(settings, version)
    path = ledger.path_of(settings)
    lines = path.read_text().splitlines()
    del lines[number - 1]
    path.write_text("".join(line + "\n" for line in lines))
    assert not aliases.ledger_verify(settings).sound


def test_unreadable_line_is_reported_and_not_fatal(settings: Settings, three: None) -> None:
    promote(settings, "1")
    path = ledger.path_of(settings)
    path.write_text("nonsense\n" + path.read_text())
    found = aliases.ledger_verify(settings)
    assert any("line 1: expected a move as JSON" in problem for problem in found.problems)


def test_rollback_returns_to_the_previous_champion_and_blocks_the_one_left(settings: Settings, three: None) -> None:
    for version in ("1", "2", "3"):
        promote(settings, version)
    line = aliases.rollback(settings, actor="person:ada", reason="clicks fell")
    assert (line.kind, line.from_version, line.to_version) == ("rollback", "3", "2")
    assert current(settings) == "2"
    with pytest.raises(PromotionRefusedError, match="rolled back by person:ada: clicks fell; only a person"):
        promote(settings, "3")
    aliases.rollback(settings, actor="person:ada", reason="still low")
    assert current(settings) == "1"
    with pytest.raises(PromotionRefusedError, match="expected a champion before version 1"):
        aliases.rollback(settings, actor="person:ada", reason="again")
    promote(settings, "3", actor="person:ada")
    assert current(settings) == "3"
    assert aliases.BLOCKED not in versions.get(settings, "3").tags
    assert aliases.ledger_verify(settings).sound


def test_rollback_that_names_the_champion_it_leaves_is_made_once(settings: Settings, three: None) -> None:
    for version in ("1", "2", "3"):
        promote(settings, version)
    lines = [
        aliases.rollback(settings, actor="person:ada", reason="clicks fell", expected_current="3") for _ in range(2)
    ]
    assert lines[0] == lines[1]
    assert current(settings) == "2"
    assert [line.kind for line in ledger.read(settings)].count("rollback") == 1


@pytest.mark.parametrize(("actor", "reason"), [("person:bob", "clicks fell"), ("person:ada", "odd titles")])
def test_rollback_from_a_champion_that_is_gone_is_refused(
    settings: Settings, three: None, actor: str, reason: str
) -> None:
    for version in ("1", "2", "3"):
        promote(settings, version)
    aliases.rollback(settings, actor="person:ada", reason="clicks fell", expected_current="3")
    with pytest.raises(PromotionRefusedError, match="expected version 3 as champion, found version 2"):
        aliases.rollback(settings, actor=actor, reason=reason, expected_current="3")
    assert current(settings) == "2"


def test_rollback_killed_before_its_line_is_finished_by_the_second_try(
    settings: Settings, three: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1", "2", "3"):
        promote(settings, version)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            aliases.rollback(settings, actor="person:ada", reason="clicks fell", expected_current="3")
    line = aliases.rollback(settings, actor="person:ada", reason="clicks fell", expected_current="3")
    assert (line.kind, line.from_version, line.to_version, line.recovered) == ("rollback", "3", "2", True)
    assert current(settings) == "2"


def test_rollback_without_a_champion_says_so(settings: Settings) -> None:
    with pytest.raises(PromotionRefusedError, match="expected a champion, found none"):
        aliases.rollback(settings, actor="person:ada", reason="x")


def test_champion_before_is_the_same_for_a_rerun_and_never_a_rolled_back_one(settings: Settings, three: None) -> None:
    def before(day: int) -> str | None:
        found = aliases.champion_before(settings, night(day).as_of)
        return found.version if found else None

    assert before(1) is None
    promote(settings, "1")
    assert (before(1), before(2)) == (None, "1")
    promote(settings, "2")
    promote(settings, "3")
    assert (before(1), before(2), before(3), before(4)) == (None, "1", "2", "3")
    aliases.rollback(settings, actor="person:ada", reason="x")
    assert before(4) == "2"


def test_recent_champions_are_the_last_ones_newest_first(settings: Settings, register: Register) -> None:
    for day in (1, 2, 3, 4):
        register(day=day)
        promote(settings, str(day))
    assert aliases.recent_champions(settings, 3) == ["4", "3", "2"]


@pytest.mark.parametrize(
    ("values", "message"),
    [({"actor": "ada"}, "expected person:NAME or rule:NAME"), ({"reason": " "}, "expected some words")],
)
def test_move_without_a_name_or_a_reason_is_refused(
    settings: Settings, three: None, values: dict[str, str], message: str
) -> None:
    with pytest.raises(RegistryError, match=message):
        aliases.move(settings, "1", **({"actor": "rule:gate", "reason": "r"} | values))


def test_version_registered_by_hand_is_never_champion(settings: Settings, three: None) -> None:
    tracking.client(settings).create_model_version("recommender", "models:/recommender/1")
    with pytest.raises(PromotionRefusedError, match="was not registered by Evensong"):
        promote(settings, "4", actor="person:ada")
