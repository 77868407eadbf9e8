"""Slices hold whom they name; a report's means are those of its users."""

import math
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from evensong.evaluation import report, slices
from evensong.types import EvaluationReport

CUTOFF = datetime(2026, 2, 1, tzinfo=UTC)


def days_ago(days: float) -> int:
    return int((CUTOFF - timedelta(days=days)).timestamp())


@pytest.fixture
def items() -> pl.DataFrame:
    """One hit with 60 of 100 events, four small ones, one of them new."""
    return pl.DataFrame(
        {
            "item_id": ["hit", "s1", "s2", "s3", "fresh"],
            "item_events_30d": [60, 20, 15, 5, None],
            "category_path": ["Food > Bread", "Food > Tea", "Home", None, "Home > Tools"],
            "arrival_seconds": [days_ago(90), days_ago(90), days_ago(8), days_ago(400), days_ago(2)],
        }
    )


@pytest.fixture
def users() -> pl.DataFrame:
    return pl.DataFrame({"user_id": ["old", "young", "nobody"], "num_interactions": [50, 4, None]})


@pytest.fixture
def targets() -> pl.DataFrame:
    pairs = [("old", "hit"), ("old", "hit"), ("young", "s1"), ("young", "hit"), ("nobody", "fresh"), ("nobody", "hit")]
    return pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")


def test_each_slice_holds_whom_it_names(users: pl.DataFrame, targets: pl.DataFrame, items: pl.DataFrame) -> None:
    assigned = slices.assign(users, targets, items, CUTOFF)
    assert assigned.to_dict(as_series=False) == {
        "user_id": ["old", "young", "nobody"],
        "slice_new_users": [False, True, True],
        "slice_new_items": [False, False, True],
        "slice_long_tail": [False, True, True],
    }


def test_an_item_that_came_after_the_cutoff_is_new_and_in_the_tail(users: pl.DataFrame, items: pl.DataFrame) -> None:
    later = pl.DataFrame({"user_id": ["old"], "item_id": ["came later"]})
    row = slices.assign(users, later, items, CUTOFF).row(0, named=True)
    assert row["slice_new_items"]
    assert row["slice_long_tail"]


@pytest.fixture
def lists() -> pl.DataFrame:
    rows = [("old", 1, "hit"), ("old", 2, "s1"), ("young", 1, "s2"), ("young", 2, "s1"), ("nobody", 1, "hit")]
    return pl.DataFrame(rows, schema=["user_id", "rank", "item_id"], orient="row")


@pytest.fixture
def tastes() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_id": ["old", "young", "nobody"],
            "top_categories": [["Food"], ["Home"], None],
            "top_category_shares": [[1.0], [0.8], None],
        },
        schema_overrides={"top_category_shares": pl.List(pl.Float32)},
    )


def test_a_list_of_the_users_own_categories_is_calibrated(
    users: pl.DataFrame, targets: pl.DataFrame, items: pl.DataFrame, lists: pl.DataFrame, tastes: pl.DataFrame
) -> None:
    assigned = slices.assign(users, targets, items, CUTOFF)
    rows = report.per_user("challenger", lists, targets, assigned, items, tastes, recall_k=2, ndcg_k=1)
    food, home, unknown = rows["miscalibration"].to_list()
    assert food == pytest.approx(0, abs=1e-9)
    # half of the list is of the one category that the user wants
    assert home == pytest.approx(-math.log(0.99 * 0.5 + 0.01))
    assert unknown == 0


def test_commonest_values_of_an_attribute_are_slices(users: pl.DataFrame) -> None:
    values = pl.DataFrame({"user_id": ["old", "young", "elsewhere"], "value": ["DE", None, "FR"]})
    assert slices.by_attribute(users, "country", values).to_dict(as_series=False) == {
        "user_id": ["old", "young", "nobody"],
        "slice_country=DE": [True, False, False],
    }


def test_report_holds_the_means_of_all_and_of_each_slice(
    users: pl.DataFrame, targets: pl.DataFrame, items: pl.DataFrame, lists: pl.DataFrame, tastes: pl.DataFrame
) -> None:
    assigned = slices.assign(users, targets, items, CUTOFF)
    rows = report.per_user("challenger", lists, targets, assigned, items, tastes, recall_k=2, ndcg_k=1)
    assert rows["recall_at_2"].to_list() == [1.0, 0.5, 0.5]
    assert rows["ndcg_at_1"].to_list() == [1.0, 0.0, 1.0]
    assert rows["mrr"].to_list() == [1.0, 0.5, 1.0]
    assert {"model", "user_id", "hit_rate_at_2", "novelty", "slice_new_users"} <= set(rows.columns)
    found = report.model_report("challenger", rows, lists, len(items), recall_k=2)
    assert found.metrics["recall_at_2"] == pytest.approx(2 / 3)
    assert found.metrics["coverage"] == pytest.approx(3 / 5)
    assert found.slices["new_users"]["recall_at_2"] == pytest.approx(0.5)
    assert found.slices["new_users"]["num_users"] == 2
    assert set(found.slices) == {"new_users", "new_items", "long_tail"}


def test_a_night_without_judged_users_has_a_report_without_figures(
    users: pl.DataFrame, targets: pl.DataFrame, items: pl.DataFrame, lists: pl.DataFrame, tastes: pl.DataFrame
) -> None:
    nobody = slices.assign(users[:0], targets[:0], items, CUTOFF)
    rows = report.per_user("challenger", lists[:0], targets[:0], nobody, items, tastes[:0], recall_k=2, ndcg_k=1)
    found = report.model_report("challenger", rows, lists[:0], len(items), recall_k=2)
    assert found.metrics == {"coverage": 0.0}
    assert found.slices["long_tail"] == {"num_users": 0.0}


def test_models_that_are_neither_challenger_nor_champion_are_baselines() -> None:
    names = ("challenger", "champion v3", "popularity")
    reports = {name: report.ModelReport(model=name, metrics={"mrr": 0.1}) for name in names}
    built = report.build(
        reports,
        challenger="challenger",
        champion="champion v3",
        champion_version="3",
        champion_train_cutoff=None,
        as_of=CUTOFF,
        window_start=CUTOFF,
        window_end=CUTOFF,
        num_users=3,
        num_events=5,
        guardrails={"index_recall": 1.0},
        per_user_uri=None,
    )
    assert list(built.baselines) == ["popularity"]
    assert built.champion is not None
    assert built.champion.model == "champion v3"
    assert EvaluationReport.model_validate_json(built.model_dump_json()) == built
