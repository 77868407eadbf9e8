"""What a version is made again from: the parameters of its run, the columns of then, and when it came out the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.registry.conftest import make_bundle, night
from tests.unit.registry.test_promotion_steps import evaluate

from evensong.errors import RegistryError
from evensong.pipelines import recipe, register, reproduce
from evensong.registry import tracking, versions
from evensong.settings import Settings

THEN = "items:\n- {name: brand, kind: categorical}\n"
TODAY = "items:\n- {name: colour, kind: categorical}\n"


@pytest.fixture
def own(settings: Settings, tmp_path: Path) -> Settings:
    """The settings with a columns file, of which version 1 was made."""
    path = tmp_path / "columns.yaml"
    path.write_text(THEN)
    features = settings.features.model_copy(update={"columns_path": path})
    own = settings.model_copy(update={"features": features})
    assert register.run(own, night(1), str(make_bundle(tmp_path / "b", 1)), evaluate(own, 1, 0.1)) == "1"
    return own


def test_columns_of_then_are_read_whatever_the_file_holds_today(own: Settings) -> None:
    assert own.features.columns_path is not None
    own.features.columns_path.write_text(TODAY)
    _, of_then = reproduce.recipe_of(own, versions.get(own, "1"))
    assert of_then.features.columns_path is not None
    assert of_then.features.columns_path != own.features.columns_path
    assert of_then.features.columns_path.read_text() == THEN
    # nor need there be a file any more
    own.features.columns_path.unlink()
    assert recipe.columns(reproduce.recipe_of(own, versions.get(own, "1"))[1]) == THEN


def test_edited_columns_of_then_are_not_believed(own: Settings) -> None:
    run_id = versions.get(own, "1").run_id
    tracking.client(own).log_text(run_id, TODAY, recipe.COLUMNS)
    with pytest.raises(RegistryError, match=r"its columns should hash to .*the artifact columns\.yaml of its run was"):
        reproduce.recipe_of(own, versions.get(own, "1"))


def test_columns_are_part_of_what_a_run_is_made_of(own: Settings) -> None:
    before = recipe.digest(own, night(1))
    assert versions.get(own, "1").tags[versions.RECIPE] == before
    assert own.features.columns_path is not None
    own.features.columns_path.write_text(TODAY)
    assert recipe.digest(own, night(1)) != before


def test_version_without_own_columns_has_none(settings: Settings, tmp_path: Path) -> None:
    register.run(settings, night(1), str(make_bundle(tmp_path / "b", 1)), evaluate(settings, 1, 0.1))
    of_then = reproduce.recipe_of(settings, versions.get(settings, "1"))[1]
    assert of_then.features.columns_path is None


def test_version_that_asked_for_a_champion_and_found_none_begins_at_random_again(
    settings: Settings, tmp_path: Path
) -> None:
    first = night(1).model_copy(update={"train_from": "champion"})
    register.run(settings, first, str(make_bundle(tmp_path / "b", 1)), evaluate(settings, 1, 0.1))
    assert reproduce.recipe_of(settings, versions.get(settings, "1"))[0].train_from == "scratch"


@pytest.mark.parametrize(
    ("metrics", "weights", "same"),
    [
        ({"recall": (0.5, 0.5)}, {"a.safetensors": True}, True),
        ({"recall": (0.5, 0.5)}, {}, True),
        ({}, {"a.safetensors": True}, True),
        ({}, {}, False),
        ({"recall": (0.5, 0.6)}, {"a.safetensors": True}, False),
        ({"recall": (0.5, 0.5)}, {"a.safetensors": False}, False),
    ],
)
def test_same_needs_something_that_was_compared(
    metrics: dict[str, tuple[float, float]], weights: dict[str, bool], same: bool
) -> None:
    rows = {name: {"then": then, "now": now} for name, (then, now) in metrics.items()}
    assert reproduce.is_same(rows, weights) is same


def test_notes_name_the_features_that_are_not_the_same() -> None:
    then = {"features": {"dictionary_version": "a", "versions": {"x.kept": "1", "x.changed": "1", "x.gone": "1"}}}
    now = {"features": {"dictionary_version": "b", "versions": {"x.kept": "1", "x.changed": "2", "x.new": "1"}}}
    assert reproduce.notes_of(then, now) == [
        'feature dictionary: "a" then, "b" now',
        "features defined differently: x.changed",
        "features not there now: x.gone",
        "features not there then: x.new",
    ]
    assert reproduce.notes_of(then, then) == []
