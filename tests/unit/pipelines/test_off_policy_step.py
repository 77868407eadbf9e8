"""What the gate says of a challenger's online value, on the simulated shop, which knows the truth."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time

import polars as pl
import pytest

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.data.simulator import Shop, ShopConfig, warmup_policy
from evensong.evaluation.evidence import OffPolicyEstimate
from evensong.evaluation.off_policy import estimates
from evensong.pipelines import evaluate, features, index, off_policy, train, training_set
from evensong.settings import Settings, load_settings
from evensong.types import EvaluationReport, Frame, Night

START, DAYS, SLOTS = date(2026, 1, 5), 8, 5
RECIPE = {
    "split": {"holdout_days": 1.0, "min_holdout_users": 0},
    "features": {"groups": ()},
    "retriever": {"dimension": 16, "epochs": 6, "batch_size": 256, "learning_rate": 0.01}
    | {"num_uniform_negatives": 32, "num_candidates": 40, "num_popular_candidates": 20},
    "ranker": {"hidden": (8,), "num_negatives": 8, "epochs": 2},
    "serving": {"filter": "none"},
}


@dataclass(frozen=True)
class Judged:
    """A shop, a night whose challenger was judged, and what the log says of it."""

    shop: Shop
    settings: Settings
    night: Night
    report: EvaluationReport
    log: Frame
    slates: Frame
    found: tuple[OffPolicyEstimate, ...]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """A week of wide slates, of which some positions carry no propensity on the last day, and a model of them."""
    shop = Shop(
        ShopConfig(
            seed=5,
            start=START,
            num_users=3000,
            num_items=120,
            slate_size=SLOTS,
            late_share=0.0,
            mean_stock=10_000.0,
            new_items_per_day=0,
            base_logit=-3.9,
        )
    )
    settings = load_settings(home=tmp_path_factory.mktemp("home"), **RECIPE)
    lake = Lake(settings.lake)
    for _ in range(DAYS):
        lived = shop.day(shop.today, warmup_policy(shop))
        for table, frame in (("interactions", lived.interactions), ("items", lived.items), ("users", lived.users)):
            lake.append_new(table, frame)
    night = Night(as_of=datetime.combine(shop.today, time(), UTC))
    features.build(settings, night)
    examples = training_set.build(settings, night)
    retriever = train.retriever(settings, night, examples)
    parts = (examples, retriever, train.ranker(settings, night, examples, retriever))
    uri = evaluate.run(settings, night, *parts, index.build(settings, night, examples, retriever))
    report = EvaluationReport.model_validate(storage.read_json(uri))
    log = off_policy.logged_slates(settings, night, report.window_start)
    slates = off_policy.challenger_slates(settings, night, log, report.window_start)
    return Judged(shop, settings, night, report, log, slates, off_policy.run(settings, night, report))


def true_value(judged: Judged, log: Frame) -> float:
    """The clicks a request that the challenger's slates would be expected to earn at the log's moments and slots."""
    moments = (
        Lake(judged.settings.lake)
        .scan("interactions", judged.night.as_of)
        .filter(pl.col("event_type") == "impression")
        .group_by("request_id")
        .agg(at=pl.col("event_timestamp").min())
        .collect()
    )
    planned = judged.slates.select("user_id", pl.col("position").cast(pl.Int64), planned="item_id")
    rows = (
        log.with_columns(pl.col("position").cast(pl.Int64))
        .join(planned, on=["user_id", "position"])
        .join(moments, on="request_id")
    )
    expected = 0.0
    for (hour, position), group in rows.group_by(pl.col("at").dt.truncate("1h"), "position"):
        users, items = group["user_id"].to_list(), group["planned"].to_list()
        expected += float(judged.shop.true_click_probability(users, items, hour, position).sum())
    return expected / log["request_id"].n_unique()


def test_both_estimates_find_what_the_challenger_would_truly_earn(judged: Judged) -> None:
    truth = true_value(judged, judged.log)
    assert [estimate.method for estimate in judged.found] == ["snips", "doubly_robust"]
    for estimate in judged.found:
        assert estimate.lower <= truth <= estimate.upper
        assert estimate.effective_sample_size > 100
        assert estimate.mean_weight == pytest.approx(1.0, abs=0.25)
        # it is not just what the shop's own slates earned
        assert truth > 1.3 * estimate.logged_value


def test_slot_that_is_not_drawn_counts_for_nobody(judged: Judged) -> None:
    first = pl.col("position") == 0
    log = judged.log.with_columns(propensity=pl.when(first).then(None).otherwise(pl.col("propensity")))
    drawn = judged.log.filter(~first)
    truth = true_value(judged, drawn)
    assert truth < 0.9 * true_value(judged, judged.log)
    for estimate in estimates(log, judged.slates):
        assert estimate.lower <= truth <= estimate.upper
        assert estimate.logged_value == pytest.approx(drawn["reward"].sum() / drawn["request_id"].n_unique())
        assert estimate.num_rows == len(drawn)


def test_logged_slates_are_the_days_impressions_with_a_reward_for_each_click(judged: Judged) -> None:
    day = Lake(judged.settings.lake).read("interactions", judged.night.as_of)
    day = day.filter(pl.col("event_timestamp") > judged.report.window_start)
    assert len(judged.log) == day.filter(pl.col("event_type") == "impression").height
    assert judged.log["reward"].sum() == day.filter(pl.col("event_type") == "click").height
    assert judged.log.group_by("request_id").len()["len"].unique().to_list() == [SLOTS]


def test_challenger_is_asked_for_as_many_items_as_were_shown(judged: Judged) -> None:
    assert judged.slates.group_by("user_id").len()["len"].unique().to_list() == [SLOTS]
    assert judged.slates["position"].unique().sort().to_list() == list(range(SLOTS))
    assert set(judged.slates["user_id"]) == set(judged.log["user_id"])


def test_what_the_held_out_day_prefers_is_truly_better(judged: Judged) -> None:
    """The model beats popularity on what users did, and, in the shop that knows their tastes, also the day after."""
    challenger, popularity = judged.report.challenger.metrics, judged.report.baselines["popularity"].metrics
    assert challenger["recall_at_20"] > popularity["recall_at_20"]
    lists = dict(judged.slates.sort("user_id", "position").group_by("user_id").agg("item_id").iter_rows())
    # both show what a user has seen: the model's filter is off here
    most = judged.shop.popularity(judged.night.as_of).argsort(kind="stable")[::-1][:SLOTS]
    popular = judged.shop.world.item_ids[most].tolist()
    value = judged.shop.true_value(lists, judged.shop.today)
    assert value > 1.05 * judged.shop.true_value(dict.fromkeys(lists, popular), judged.shop.today)
