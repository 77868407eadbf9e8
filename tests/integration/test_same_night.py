"""One night run with two seeds, whole: the second is compared with the champion that the first made, and keeps it."""

from __future__ import annotations

from datetime import date

import pytest

from evensong.data import storage
from evensong.pipelines import simulate
from evensong.pipelines.night import NightResult, run_night
from evensong.registry import aliases, ledger, versions
from evensong.settings import Settings, load_settings
from evensong.types import EvaluationReport, Night

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(
        home=tmp_path_factory.mktemp("home"),
        retriever={"epochs": 2, "dimension": 16},
        ranker={"epochs": 1, "max_slates": 1000},
    )


def run(settings: Settings, seed: int) -> tuple[NightResult, EvaluationReport]:
    night = Night.model_validate({"as_of": "2026-01-09", "seed": seed})
    result = run_night(settings, night)
    return result, EvaluationReport.model_validate(storage.read_json(f"{result.run_uri}/evaluation.json"))


def test_another_seed_of_a_night_keeps_its_champion_and_either_can_run_again(settings: Settings) -> None:
    simulate.run(settings, days=8, start=date(2026, 1, 1), policy="warmup")
    first, judged = run(settings, 7)
    assert judged.champion_version is None
    if first.champion is None:
        # so small a shop, so short a training: what matters is who is champion, and not why
        aliases.move(settings, first.version, actor="person:test", reason="somebody must begin")
    other, compared = run(settings, 8)
    assert other.version != first.version
    assert (other.champion, compared.champion_version) == (first.version, first.version)
    # the champion's refit has learned the held-out days, and what is compared is what had not
    assert compared.champion is not None
    assert compared.champion_train_cutoff == compared.window_start == judged.window_start
    assert compared.champion.metrics == judged.challenger.metrics
    assert not other.decision.promote
    assert any(check.name == "better_than_champion.recall_at_20" for check in other.decision.checks)
    lines = ledger.read(settings)
    for before, seed in ((first, 7), (other, 8)):
        again, _ = run(settings, seed)
        assert (again.version, again.champion, again.decision) == (before.version, first.version, before.decision)
    assert ledger.read(settings) == lines
    assert aliases.ledger_verify(settings).sound
    assert len(versions.listed(settings)) == 2
