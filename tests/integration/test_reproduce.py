"""A version can be made again from what its tags say, and two versions can be told apart."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from evensong.pipelines import diff, reproduce, simulate
from evensong.pipelines.night import NightResult, run_night
from evensong.registry import versions
from evensong.settings import Settings, load_settings
from evensong.types import Night

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings(
        home=tmp_path_factory.mktemp("home"),
        retriever={"epochs": 2, "dimension": 16},
        ranker={"epochs": 1, "max_slates": 1000},
    )


@pytest.fixture(scope="module")
def nights(settings: Settings) -> list[NightResult]:
    """Two nights of the shop; the second learned from a day more, with another seed."""
    simulate.run(settings, days=8, start=date(2026, 1, 1), policy="warmup")
    first = run_night(settings, Night.model_validate({"as_of": "2026-01-09"}))
    simulate.run(settings, days=1, policy="warmup")
    return [first, run_night(settings, Night.model_validate({"as_of": "2026-01-10", "seed": 11}))]


def test_a_version_is_made_again_to_the_last_bit(settings: Settings, nights: list[NightResult]) -> None:
    # the lake has grown since, and its versions of then are read
    answer = reproduce.run(settings, nights[0].version)
    assert answer["same"], answer
    assert answer["largest_difference"] == 0
    assert answer["weights"]
    assert all(answer["weights"].values())


def test_another_recipe_is_told_from_the_one_that_was_used(settings: Settings, nights: list[NightResult]) -> None:
    # the settings of today do not matter: the recipe of then is on the version's run
    today = settings.model_copy(update={"retriever": settings.retriever.model_copy(update={"epochs": 1})})
    assert reproduce.run(today, nights[0].version)["same"]


def test_two_versions_differ_in_what_made_them(settings: Settings, nights: list[NightResult]) -> None:
    answer = diff.run(settings, nights[0].version, nights[1].version)
    assert {"as_of", "lake_versions.interactions"} <= {row["name"] for row in answer["data"]}
    assert {"name": "night.seed", "first": "7", "second": "11"} in answer["configuration"]
    assert answer["features"] == []
    assert answer["metrics"]["challenger.recall_at_20"]["first"] is not None
    assert answer["missing"] == ""
    assert all(row["first"] and row["second"] for row in answer["recommendations"])


def test_a_version_says_what_it_was_made_from(settings: Settings, nights: list[NightResult]) -> None:
    tags = versions.get(settings, nights[0].version).tags
    assert {"lake_versions", "code_commit", "seed", "features", "judged_digest"} <= tags.keys()
    assert Path(nights[0].run_uri).exists()
