"""The champion: moved by one hand, one ledger line a move, consistent after any crash."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.registry.conftest import Prepared, Register, night
from tests.variants import first_daily
from typer.testing import CliRunner

from evensong.cli import app
from evensong.errors import BusyError, PromotionRefusedError, RegistryError
from evensong.registry import aliases, bundle, ledger, locks, tracking, versions
from evensong.settings import Settings


@pytest.fixture
def three(settings: Settings, prepared: Prepared) -> None:
    prepared(settings, register_three)


def register_three(settings: Settings, register: Register) -> None:
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
    with pytest.raises(PromotionRefusedError, match="another hand moved it; no rule moves the champion on"):
        promote(settings, "2")
    promote(settings, "2", actor="person:ada")
    assert current(settings) == "2"
    # the ledger tells of it for ever, and what the check finds from now on is new
    assert [(line.kind, line.from_version, line.to_version) for line in ledger.read(settings)] == [
        ("promote", None, "1"),
        ("adopt", "1", "3"),
        ("promote", "3", "2"),
    ]
    assert ledger.read(settings)[1].acknowledged == tuple(state.problems)
    assert aliases.ledger_verify(settings).problems == []
    promote(settings, "3")
    assert current(settings) == "3"


def edit(settings: Settings, number: int, **changes: object) -> None:
    path = ledger.path_of(settings)
    lines = path.read_text().splitlines()
    lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | changes, sort_keys=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("number", first_daily([2, 1, 3]))
def test_edited_line_is_found_wherever_it_stands(settings: Settings, three: None, number: int) -> None:
    for version in ("1", "2", "3"):
        promote(settings, version)
    assert aliases.ledger_verify(settings).sound
    edit(settings, number, reason="it was not me")
    found = aliases.ledger_verify(settings)
    assert not found.sound
    assert any(f"line {number}" in problem for problem in found.problems)


@pytest.mark.parametrize("number", first_daily([2, 1, 3]))
def test_removed_line_is_found_wherever_it_stood(settings: Settings, three: None, number: int) -> None:
    for version in ("1", "2", "3"):
        promote(settings, version)
    path = ledger.path_of(settings)
    lines = path.read_text().splitlines()
    del lines[number - 1]
    path.write_text("".join(line + "\n" for line in lines))
    assert not aliases.ledger_verify(settings).sound


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: text.replace("\n", "\n\n", 1), "a blank line stands after line 1; another hand added it"),
        (lambda text: "  \n" + text, "a blank line stands after line 0; another hand added it"),
        (lambda text: text + "and more", "after line 2 stand 8 bytes that are no line; another hand added them"),
    ],
    ids=["a blank line between", "a blank line before", "text after the last line"],
)
def test_what_is_no_line_is_found(settings: Settings, three: None, spoil: Callable[[str], str], said: str) -> None:
    promote(settings, "1")
    promote(settings, "2")
    path = ledger.path_of(settings)
    path.write_text(spoil(path.read_text()))
    assert aliases.ledger_verify(settings).problems == [said]
    assert [line.to_version for line in ledger.read(settings)] == ["1", "2"]
    # a person settles it as everything else
    assert aliases.adopt(settings, actor="person:ada", reason="it was an editor")
    assert aliases.ledger_verify(settings).sound


def test_unreadable_line_is_reported_and_not_fatal(settings: Settings, three: None) -> None:
    promote(settings, "1")
    path = ledger.path_of(settings)
    path.write_text("nonsense\n" + path.read_text())
    found = aliases.ledger_verify(settings)
    assert any("line 1: expected a move as JSON" in problem for problem in found.problems)


def test_alias_taken_away_by_another_hand_is_found_and_put_back_by_a_person(settings: Settings, three: None) -> None:
    promote(settings, "1")
    tracking.client(settings).delete_registered_model_alias("recommender", "champion")
    assert "it points at no version" in aliases.ledger_verify(settings).problems[0]
    with pytest.raises(PromotionRefusedError, match="no rule moves the champion on"):
        promote(settings, "2")
    line = promote(settings, "2", actor="person:ada")
    assert line is not None
    assert (line.from_version, line.to_version, len(line.acknowledged)) == ("1", "2", 1)
    assert aliases.ledger_verify(settings).sound


def forge(settings: Settings, to_version: str) -> None:
    """A line that follows from the one before in all but that the registry never wrote it."""
    path = ledger.path_of(settings)
    texts = path.read_text().splitlines()
    last = json.loads(texts[-1])
    line = last | {
        "number": len(texts) + 1,
        "from_version": last["to_version"],
        "to_version": to_version,
        "previous": ledger.hash_of(texts[-1]),
        "anchor": f"{len(texts)}:{ledger.hash_of(texts[-1])}",
        "move": "0" * 32,
    }
    path.write_text("\n".join([*texts, json.dumps(line, sort_keys=True)]) + "\n")


def test_line_forged_for_an_alias_moved_by_hand_is_found(settings: Settings, three: None) -> None:
    promote(settings, "1")
    tracking.client(settings).set_registered_model_alias("recommender", "champion", "3")
    forge(settings, "3")
    assert aliases.ledger_verify(settings).problems == [
        "MLflow remembers 1 lines, the ledger has 2; another hand added line 2"
    ]


@pytest.mark.parametrize("tag", [None, "nonsense", "2:"])
def test_ledger_whose_end_mlflow_has_forgotten_is_not_sound(settings: Settings, three: None, tag: str | None) -> None:
    promote(settings, "1")
    promote(settings, "2")
    client = tracking.client(settings)
    if tag is None:
        client.delete_registered_model_tag("recommender", aliases.HEAD)
    else:
        client.set_registered_model_tag("recommender", aliases.HEAD, tag)
    edit(settings, 2, reason="it was not me")
    assert "its tag was edited or removed" in aliases.ledger_verify(settings).problems[0]
    with pytest.raises(PromotionRefusedError, match="its tag was edited or removed"):
        promote(settings, "3")


def test_bytes_that_are_no_text_are_reported_and_not_fatal(settings: Settings, three: None) -> None:
    promote(settings, "1")
    promote(settings, "2")
    path = ledger.path_of(settings)
    path.write_bytes(path.read_bytes().replace(b"to 1", b"to \xff"))
    problems = aliases.ledger_verify(settings).problems
    assert any(problem.startswith("line 1: expected a move as JSON") for problem in problems)


def test_promotion_and_rollback_cut_off_together_stop_the_next_night_and_leave_a_trace(
    settings: Settings, three: None
) -> None:
    promote(settings, "1")
    before = ledger.path_of(settings).read_text()
    promote(settings, "2")
    aliases.rollback(settings, actor="person:eve", reason="nobody shall see this")
    ledger.path_of(settings).write_text(before)
    with pytest.raises(PromotionRefusedError, match="MLflow remembers 3 lines, the ledger has 1; lines were cut off"):
        promote(settings, "3")
    # a person goes on all the same: what MLflow remembered stands in the new line
    promote(settings, "3", actor="person:ada")
    assert [
        problem for problem in aliases.ledger_verify(settings).problems if "line 2: MLflow remembered line 3" in problem
    ]


def test_what_a_person_acknowledges_is_reported_no_more_and_what_comes_later_is(
    settings: Settings, three: None
) -> None:
    promote(settings, "1")
    promote(settings, "2")
    edit(settings, 1, reason="it was not me")
    found = aliases.ledger_verify(settings).problems
    assert found
    line = aliases.adopt(settings, actor="person:ada", reason="restored from a backup")
    assert line is not None
    assert (line.kind, line.from_version, line.to_version, list(line.acknowledged)) == ("adopt", "2", "2", found)
    assert aliases.ledger_verify(settings).sound
    assert aliases.adopt(settings, actor="person:ada", reason="again") is None
    promote(settings, "3")
    assert aliases.ledger_verify(settings).sound
    edit(settings, 2, reason="nor this")
    assert any("line 2" in problem for problem in aliases.ledger_verify(settings).problems)


def test_line_cannot_acknowledge_its_own_edit(settings: Settings, three: None) -> None:
    for version in ("1", "2", "3"):
        promote(settings, version)
    edit(settings, 2, reason="it was not me")
    problem = aliases.ledger_verify(settings).problems[0]
    edit(settings, 1, acknowledged=[problem])
    assert problem in aliases.ledger_verify(settings).problems


def test_line_edited_while_its_mover_was_dead_is_not_sealed(
    settings: Settings, three: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(settings, "1")
    with monkeypatch.context() as patch:
        kill_at(patch, aliases, "_seal")
        with pytest.raises(Killed):
            promote(settings, "2", actor="person:eve")
    edit(settings, 2, actor="person:ada")
    assert aliases.ledger_verify(settings).problems == [
        "MLflow remembers 1 lines, the ledger has 2; another hand added line 2"
    ]


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


def in_between(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another promotion, at the last moment before the rollback's own move."""
    fetch = bundle.fetch

    def slow(settings: Settings, version: str) -> Path:
        promote(settings, "1", actor="person:bob")
        return fetch(settings, version)

    monkeypatch.setattr(bundle, "fetch", slow)


def damage(settings: Settings, version: str) -> None:
    model_id = versions.get(settings, version).model_id
    (stored,) = Path(settings.model_artifacts).glob(f"models/{model_id}/artifacts/data/bundle/popularity.json")
    stored.write_text("another model")


@pytest.mark.parametrize(
    ("to", "reason", "spoil", "said"),
    [
        ("99", "clicks fell", None, "99"),
        (None, "  ", None, "expected some words"),
        ("1", "clicks fell", "collect", "its bundle was collected"),
        (None, "clicks fell", "damage", r"the bundle of version 2 cannot be had, so nothing was moved.*--to VERSION"),
        (None, "clicks fell", "move", "another promotion came first"),
        (None, "x" * 5000, None, "expected at most 4,000 characters, got 5,000"),
    ],
)
def test_rollback_that_is_refused_leaves_the_champion_as_it_was(
    settings: Settings,
    three: None,
    monkeypatch: pytest.MonkeyPatch,
    to: str | None,
    reason: str,
    spoil: str | None,
    said: str,
) -> None:
    for version in ("1", "2", "3"):
        promote(settings, version)
    if spoil == "collect":
        versions.set_tags(settings, "1", {"collected": "2026-01-01"})
    elif spoil == "damage":
        damage(settings, "2")
    elif spoil == "move":
        in_between(settings, monkeypatch)
    with pytest.raises((PromotionRefusedError, RegistryError), match=said):
        aliases.rollback(settings, actor="person:ada", reason=reason, to=to)
    assert current(settings) == ("1" if spoil == "move" else "3")
    assert aliases.BLOCKED not in versions.get(settings, "3").tags
    assert not any(line.kind == "rollback" for line in ledger.read(settings))


def test_rollback_while_the_champion_is_being_moved_changes_nothing(
    settings: Settings, three: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(settings, "1")
    promote(settings, "2")
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
    with aliases.held(settings), pytest.raises(BusyError, match="champion: another process holds it"):
        aliases.rollback(settings, actor="person:ada", reason="clicks fell")
    assert (current(settings), aliases.BLOCKED in versions.get(settings, "2").tags) == ("2", False)


def test_rollback_passes_over_what_holds_no_bundle(settings: Settings, three: None) -> None:
    for version in ("1", "2", "3"):
        promote(settings, version)
    versions.set_tags(settings, "2", {"collected": "2026-01-01"})
    assert aliases.previous_champion(settings, "3") == "1"
    assert aliases.rollback(settings, actor="person:ada", reason="clicks fell").to_version == "1"
    # nor can a night be compared with it
    promote(settings, "3", actor="person:ada")
    found = aliases.champion_before(settings, night(3).as_of)
    assert found is not None
    assert found.version == "1"


@pytest.mark.parametrize(("module", "name"), [(ledger, "append"), (aliases, "_seal"), (versions, "delete_tag")])
def test_word_on_a_version_follows_its_move_however_the_mover_dies(
    settings: Settings, three: None, monkeypatch: pytest.MonkeyPatch, module: object, name: str
) -> None:
    promote(settings, "1")
    promote(settings, "2")
    with monkeypatch.context() as patch:
        kill_at(patch, module, name)
        with pytest.raises(Killed):
            aliases.rollback(settings, actor="person:ada", reason="clicks fell")
    aliases.recover(settings)
    assert current(settings) == "1"
    assert versions.get(settings, "2").tags[aliases.BLOCKED] == "rolled back by person:ada: clicks fell"
    with monkeypatch.context() as patch:
        kill_at(patch, module, name)
        with pytest.raises(Killed):
            promote(settings, "2", actor="person:ada")
    aliases.recover(settings)
    assert current(settings) == "2"
    assert aliases.BLOCKED not in versions.get(settings, "2").tags
    assert aliases.ledger_verify(settings).sound


def test_person_takes_the_block_from_a_champion_that_an_older_release_left_blocked(
    settings: Settings, three: None
) -> None:
    promote(settings, "1")
    versions.set_tags(settings, "1", {aliases.BLOCKED: "rolled back by person:ada: but it was not"})
    assert promote(settings, "1", actor="person:ada") is None
    assert aliases.BLOCKED not in versions.get(settings, "1").tags


def test_champion_cannot_be_blocked(settings: Settings, three: None) -> None:
    promote(settings, "1")
    with pytest.raises(PromotionRefusedError, match="is the champion; use `evensong registry rollback`"):
        aliases.block(settings, "1", "rejected by person:ada: x")


def test_move_with_an_id_is_made_once_and_not_over_a_later_block(settings: Settings, three: None) -> None:
    promote(settings, "1")
    assert promote(settings, "2", actor="person:ada", move_id="answer")
    aliases.rollback(settings, actor="person:bob", reason="clicks fell")
    assert promote(settings, "2", actor="person:ada", move_id="answer") is None
    assert promote(settings, "2", actor="person:ada", move_id="another") is None
    word = versions.get(settings, "2").tags[aliases.BLOCKED]
    assert promote(settings, "2", actor="person:ada", move_id="a third", despite=word)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("", "expected some words"),
        ("x" * 4001, "expected at most 4,000 characters, got 4,001; say it shorter"),
        ('"' * 2001, "expected at most 4,000 characters, got 4,002"),
        ("odd\0titles", "got control characters"),
        ("half \ud83d", "half of a character"),
    ],
)
def test_reason_that_a_ledger_cannot_hold_is_refused_before_anything_moves(
    settings: Settings, three: None, reason: str, said: str
) -> None:
    with pytest.raises(RegistryError, match=said):
        aliases.move(settings, "1", actor="person:ada", reason=reason)
    assert (current(settings), ledger.read(settings)) == (None, [])


def test_rule_of_many_words_is_cut_short_and_a_person_s_are_kept(settings: Settings, three: None) -> None:
    aliases.move(settings, "1", actor="rule:gate", reason="every check " * 1000)
    words = "проверено " * 390
    aliases.move(settings, "2", actor="person:ada", reason=words)
    first, second = ledger.read(settings)
    assert first.reason.endswith("…")
    assert second.reason == words.strip()
    assert aliases.ledger_verify(settings).sound


def test_rollback_goes_to_earlier_champions_alone(settings: Settings, three: None) -> None:
    promote(settings, "1")
    promote(settings, "3")
    with pytest.raises(PromotionRefusedError, match=r"version 2 never was the champion.*registry promote 2 --reason"):
        aliases.rollback(settings, actor="person:ada", reason="x", to="2")
    assert current(settings) == "3"
    assert aliases.rollback(settings, actor="person:ada", reason="x", to="1").to_version == "1"


def test_rollback_on_the_command_line_that_names_what_it_leaves_moves_once(
    settings: Settings, three: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENSONG_HOME", str(settings.home))
    for version in ("1", "2", "3"):
        promote(settings, version)
    command = ["registry", "rollback", "--reason", "clicks fell", "--expected", "3", "--json"]
    for _ in range(2):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["champion"] == "2"
    assert [line.to_version for line in ledger.read(settings)] == ["1", "2", "3", "2"]
    promote(settings, "1", actor="person:ada")
    late = CliRunner().invoke(app, command)
    assert isinstance(late.exception, PromotionRefusedError) or late.exit_code == 1
    assert current(settings) == "1"


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
