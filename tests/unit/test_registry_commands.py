"""`evensong registry` on a home with a history: readable for people, the same JSON as ever, exit codes to script by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.pipelines.test_overview import live, set_mode
from typer.testing import CliRunner, Result

from evensong import cli
from evensong.registry import commands, tracking, versions
from evensong.settings import Settings


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """1 was promoted, 2 kept back, 3 promoted and rolled back, 4 waits."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, registry={"policy_path": home / "policy.yaml"})  # type: ignore[arg-type]
    set_mode(settings, "auto")
    for day, gain in ((1, 0.05), (2, 0.0), (3, 0.05)):
        live(settings, day, gain)
    commands.rollback(settings, reason="clicks fell", actor="person:ada")
    set_mode(settings, "review")
    live(settings, 4, 0.05)
    return settings


@pytest.fixture
def evensong(home: Settings, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("EVENSONG_HOME", str(home.home))
    monkeypatch.setenv("EVENSONG_REGISTRY__POLICY_PATH", str(home.registry.policy_path))
    monkeypatch.setenv("COLUMNS", "80")
    return CliRunner()


def run(evensong: CliRunner, *arguments: str) -> Result:
    return evensong.invoke(cli.app, ["registry", *arguments])


def test_list_fits_80_columns_and_names_what_matters(evensong: CliRunner, home: Settings) -> None:
    lines = run(evensong, "list").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert versions.get(home, "1").digest not in text
    assert versions.get(home, "1").digest[:8] in text
    assert "2026-03-04" in text
    assert json.loads(run(evensong, "list", "--json").stdout) == commands.list_versions(home)


def test_show_tells_the_decision_with_each_failed_check_the_figures_the_lineage_and_where_to_read_on(
    evensong: CliRunner, home: Settings
) -> None:
    text = run(evensong, "show", "2").stdout
    assert "version 2, night of 2026-03-02" in text
    assert "keep the champion" in text
    assert "better_than_champion.recall_at_20: not shown to be better than champion v1" in " ".join(text.split())
    assert "recall_at_20" in text
    assert "lake versions" in text
    assert "/#/models/recommender/versions/2" in text
    assert "dossier.html" in text
    assert "never the champion" in text
    # no raw tags: what a program wants is in the JSON
    assert "bundle_digest" not in text
    assert "evidence_hash" not in text
    shown = json.loads(run(evensong, "show", "2", "--json").stdout)
    assert shown == json.loads(json.dumps(commands.show(home, "2"), default=str))


def test_show_of_a_version_that_was_rolled_back_says_so_with_its_moves(evensong: CliRunner) -> None:
    text = run(evensong, "show", "3").stdout
    assert "blocked: rolled back by person:ada: clicks fell" in text
    assert "promote: version 1 to 3, by rule:gate" in text
    assert "rollback: version 3 to 1, by person:ada" in text


def test_show_of_a_waiting_version_says_that_a_person_must_agree(evensong: CliRunner) -> None:
    text = run(evensong, "show", "4").stdout
    assert "review: waiting" in text
    assert "a person must agree" in text


def test_decision_that_was_edited_is_not_shown(evensong: CliRunner, home: Settings) -> None:
    decided = versions.get(home, "2").tags["decision_hash"]
    versions.set_tags(home, "2", {"decision_hash": "0" * 64})
    text = run(evensong, "show", "2").stdout
    versions.set_tags(home, "2", {"decision_hash": decided})
    assert "its decision cannot be read" in text


def test_diff_names_the_code_and_what_is_missing(evensong: CliRunner, home: Settings) -> None:
    for version, commit in (("1", "abc123"), ("2", "def456")):
        versions.set_tags(home, version, {"code_commit": commit})
    text = run(evensong, "diff", "1", "2").stdout
    assert all(word in text for word in ("code_commit", "abc123", "def456"))
    assert "features: the same" in text
    assert "missing: recommendations:" in text


def test_reviews_say_until_when_and_what_silence_comes_to(evensong: CliRunner) -> None:
    text = run(evensong, "reviews").stdout
    assert "version 4, night of 2026-03-04" in text
    assert "UTC, then the champion stays" in text
    assert "better than champion v1" in text


def test_verify_exits_with_1_until_somebody_acknowledges_what_it_finds(evensong: CliRunner, home: Settings) -> None:
    assert run(evensong, "ledger", "--verify").exit_code == 0
    tracking.client(home).set_registered_model_alias("recommender", "champion", "2")
    found = run(evensong, "ledger", "--verify")
    assert found.exit_code == 1
    assert "is not sound" in found.stdout
    assert "another hand moved it" in " ".join(found.stdout.split())
    assert "evensong registry adopt" in found.stdout
    assert json.loads(run(evensong, "ledger", "--verify", "--json").stdout)["sound"] is False
    adopted = run(evensong, "adopt", "--reason", "it was me, in the MLflow UI")
    assert (adopted.exit_code, "another hand moved it" in " ".join(adopted.stdout.split())) == (0, True)
    assert run(evensong, "ledger", "--verify").exit_code == 0
    assert "nothing to acknowledge" in " ".join(run(evensong, "adopt", "--reason", "again").stdout.split())


def test_collect_shows_what_it_would_remove(evensong: CliRunner) -> None:
    plan = json.loads(run(evensong, "collect", "--json").stdout)
    assert {one["action"] for one in plan} == {"keep"}
    assert [one["version"] for one in plan] == ["4", "3", "2", "1"]


def test_reject_says_what_it_did(evensong: CliRunner, home: Settings) -> None:
    done = run(evensong, "reject", "4", "--reason", "odd titles")
    assert done.stdout.strip() == "version 4 is rejected: odd titles"
    assert commands.reviews(home) == []


def test_home_without_a_version_is_told_what_to_do(
    evensong: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENSONG_HOME", str(tmp_path))
    assert run(evensong, "ledger", "--verify").exit_code == 0
    assert "no champion was ever chosen here" in " ".join(run(evensong, "ledger").stdout.split())


def test_origin_is_for_people_and_whole_in_json(evensong: CliRunner, home: Settings) -> None:
    text = run(evensong, "origin", "1").stdout
    assert versions.get(home, "1").digest in text
    assert "{" not in text
    assert "promote: version none to 1, by rule:gate" in text
    assert "never the champion" in run(evensong, "origin", "4").stdout
    whole = json.loads(run(evensong, "origin", "1", "--json").stdout)
    assert whole == json.loads(json.dumps(commands.origin(home, "1"), default=str))


def test_who_promotes_what_the_gate_kept_back_is_told_so(evensong: CliRunner) -> None:
    # whoever the champion is by now, it is 1 after this, of which the gate said promote
    assert "the gate would have kept" not in run(evensong, "promote", "1", "--reason", "the first again").stdout
    said = " ".join(run(evensong, "promote", "2", "--reason", "looked at it").stdout.split())
    assert "the gate would have kept the champion: not shown to be better than champion v1" in said
