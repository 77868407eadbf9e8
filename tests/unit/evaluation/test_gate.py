"""The gate: what promotes, what keeps the champion, and that it never promotes on a figure it does not have."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from tests.unit.evaluation.gate_world import AS_OF, FIRST, METRICS, SOUND, figures, report_of

from evensong.errors import ConfigurationError
from evensong.evaluation.gate import GateInputs, OffPolicyEstimate, decide
from evensong.evaluation.policy import GuardrailRule, PromotionPolicy, load_policy
from evensong.types import EvaluationReport, ModelReport, PromotionDecision

POLICY = load_policy(Path("mlflow/promotion_policy.yaml").read_text())
GUARDED = {"exact_index_gain": 0.0}


def failed(decision: PromotionDecision) -> list[str]:
    return [check.name for check in decision.checks if not check.passed]


def with_policy(**changes: object) -> PromotionPolicy:
    return PromotionPolicy.model_validate(POLICY.model_dump() | changes)


def test_clearly_better_challenger_is_promoted_and_says_by_how_much() -> None:
    per_user = figures(gain=0.1)
    decision = decide(report_of(per_user), POLICY, per_user, SOUND)
    assert (decision.promote, decision.needs_review, failed(decision)) == (True, False, [])
    assert any("better than champion v1 on recall_at_20: gain +0." in reason for reason in decision.reasons)
    assert any("could show a gain of" in reason for reason in decision.reasons)


def test_practical_tie_keeps_the_champion() -> None:
    per_user = figures(gain=0.0)
    decision = decide(report_of(per_user), POLICY, per_user, SOUND)
    assert failed(decision) == ["better_than_champion.recall_at_20"]
    assert "not shown to be better than champion v1" in decision.reasons[0]


def test_real_but_tiny_gain_within_the_margin_keeps_the_champion() -> None:
    per_user = figures(num_users=4000, gain=0.004)
    policy = with_policy(primary=POLICY.primary.model_dump() | {"margin": 0.005})
    assert failed(decide(report_of(per_user), policy, per_user, SOUND)) == ["better_than_champion.recall_at_20"]
    assert decide(report_of(per_user), POLICY, per_user, SOUND).promote


def test_without_a_champion_better_than_popularity_suffices() -> None:
    per_user = figures(num_users=30)
    decision = decide(report_of(per_user, with_champion=False), POLICY, None, FIRST)
    assert decision.promote
    assert "recall_at_20 0." in decision.reasons[0]
    assert "above popularity's 0.0500" in decision.reasons[0]


@pytest.mark.parametrize("with_champion", [True, False])
def test_challenger_below_popularity_is_kept_out(with_champion: bool) -> None:
    per_user = figures()
    report = report_of(per_user, with_champion=with_champion, popularity=0.9)
    inputs = SOUND if with_champion else FIRST
    assert failed(decide(report, POLICY, per_user, inputs)) == [
        f"above_{baseline}.{metric}"
        for baseline in ("popularity", "item_knn")
        for metric in ("recall_at_20", "ndcg_at_10")
    ]


def test_equal_to_popularity_is_not_above_it() -> None:
    per_user = figures()
    level = float(per_user.filter(pl.col("model") == "challenger")["recall_at_20"].mean())  # type: ignore[arg-type]
    assert not decide(report_of(per_user, popularity=level), POLICY, per_user, SOUND).promote


def test_too_few_users_conclude_nothing() -> None:
    per_user = figures(num_users=19)
    assert "enough_users" in failed(decide(report_of(per_user), POLICY, per_user, SOUND))
    assert "enough_users" in failed(decide(report_of(per_user, with_champion=False), POLICY, per_user, FIRST))


def test_backfill_of_an_older_night_is_not_promoted() -> None:
    per_user = figures()
    inputs = SOUND.model_copy(update={"newest_champion_as_of": AS_OF + timedelta(days=1)})
    decision = decide(report_of(per_user), POLICY, per_user, inputs)
    assert failed(decision) == ["not_older_than_champion"]
    assert "older than the champion's" in decision.reasons[0]


def test_report_against_another_champion_is_not_trusted() -> None:
    per_user = figures()
    inputs = SOUND.model_copy(update={"champion_version": "2"})
    assert failed(decide(report_of(per_user), POLICY, per_user, inputs)) == ["same_champion"]


def test_lower_ndcg_with_higher_recall_keeps_the_champion() -> None:
    per_user = figures().with_columns(
        pl.when(pl.col("model") == "challenger")
        .then(pl.col("ndcg_at_10") - 0.2)
        .otherwise(pl.col("ndcg_at_10"))
        .alias("ndcg_at_10")
    )
    assert failed(decide(report_of(per_user), POLICY, per_user, SOUND)) == ["not_worse.ndcg_at_10"]


def test_good_on_average_but_ruined_for_new_users_is_stopped_for_that() -> None:
    per_user = figures().with_columns(
        pl.when((pl.col("model") == "challenger") & (pl.int_range(pl.len()) % 10 == 0))
        .then(0.0)
        .otherwise(pl.col("recall_at_20"))
        .alias("recall_at_20"),
        slice_new_users=pl.int_range(pl.len()) % 10 == 0,
    )
    decision = decide(report_of(per_user), POLICY, per_user, SOUND)
    assert failed(decision) == ["slice.new_users"]
    assert "recall_at_20 of new_users: worse" in decision.reasons[0]


def test_slice_without_users_tonight_has_nobody_to_lose() -> None:
    per_user = figures().with_columns(slice_new_users=pl.lit(False))
    assert decide(report_of(per_user), POLICY, per_user, SOUND).promote


def slice_of(num_users: int, *changes: float) -> pl.DataFrame:
    """Figures whose slice of new users holds so many, who change by these amounts in turn, and all others by 0.1."""
    per_user, number = figures(gain=0.1), pl.col("user_id").str.slice(1).cast(pl.Int64)
    champion = per_user.filter(pl.col("model") == "champion v1").with_columns(slice_new_users=number < num_users)
    amount = pl.lit(0.1)
    for place, change in enumerate(changes):
        inside = pl.col("slice_new_users") & (number % len(changes) == place)
        amount = pl.when(inside).then(change).otherwise(amount)
    moved = champion.with_columns(pl.col("recall_at_20") + amount, model=pl.lit("challenger"))
    return pl.concat([moved, champion])


#: Some find what they did not, more lose what they had: on average a loss of 0.1, of which 30 users prove nothing.
HALVED = (0.25, -0.5, 0.25, -0.5, 0.0)


def test_slice_of_thirty_users_that_finds_half_keeps_the_champion_though_nothing_is_proven() -> None:
    per_user = slice_of(30, *HALVED)
    decision = decide(report_of(per_user), POLICY, per_user, SOUND)
    assert failed(decision) == ["slice.new_users"]
    assert "recall_at_20 of new_users: likely worse, change -0.1000" in decision.reasons[0]
    check = next(check for check in decision.checks if check.name == "slice.new_users")
    assert check.bound == pytest.approx(-0.02, abs=0.01)
    lenient = with_policy(slices=POLICY.slices.model_dump() | {"when_inconclusive": "pass"})
    assert decide(report_of(per_user), lenient, per_user, SOUND).promote


def test_slice_that_gains_a_little_by_what_was_measured_passes_in_doubt() -> None:
    per_user = slice_of(30, 0.5, -0.5, 0.5, -0.4, -0.05)
    decision = decide(report_of(per_user), POLICY, per_user, SOUND)
    assert decision.promote
    assert [check.name for check in decision.checks if check.doubtful] == ["slice.new_users"]
    assert any("cannot tell, change +0.0100 over 30 users" in reason for reason in decision.reasons)


@pytest.mark.parametrize(
    ("changes", "stopped"), [((-0.5, 0.25, -0.5, 0.25), False), ((-0.5, -0.4, -0.45, -0.45), True)]
)
def test_slice_of_few_users_fails_by_a_loss_that_is_shown_alone(changes: tuple[float, ...], stopped: bool) -> None:
    per_user = slice_of(8, *changes)
    decision = decide(report_of(per_user), POLICY, per_user, SOUND)
    assert failed(decision) == (["slice.new_users"] if stopped else [])
    assert ("too few to tell, change -0.1250" in str(decision.reasons)) is not stopped


def test_allowed_loss_is_a_share_of_what_the_champion_finds_where_that_is_little() -> None:
    few = pl.when(pl.col("model") == "challenger").then(0.018).otherwise(0.03)
    per_user = figures().with_columns(
        pl.when(pl.col("slice_new_users")).then(few).otherwise(pl.col("recall_at_20")).alias("recall_at_20")
    )
    decision = decide(report_of(per_user), POLICY, per_user, SOUND)
    assert {"slice.new_users"} <= set(failed(decision))
    assert any("change -0.0120" in reason and "allowed -0.0030" in reason for reason in decision.reasons)


def test_slice_that_cannot_tell_is_a_doubt_that_the_policy_judges() -> None:
    per_user = figures().with_columns(slice_new_users=pl.int_range(pl.len()) % 100 == 0)
    decision = decide(report_of(per_user), POLICY, per_user, SOUND)
    assert decision.promote
    assert [check.name for check in decision.checks if check.doubtful] == ["slice.new_users"]
    doubtful = decide(report_of(per_user), with_policy(mode="review_when_doubtful"), per_user, SOUND)
    assert (doubtful.promote, doubtful.needs_review) == (True, True)
    strict = with_policy(slices=POLICY.slices.model_dump() | {"when_inconclusive": "fail"})
    assert "slice.new_users" in failed(decide(report_of(per_user), strict, per_user, SOUND))


def test_gate_keeps_champion_when_coverage_drops() -> None:
    per_user = figures()
    report = report_of(per_user)
    poor = report.challenger.model_copy(update={"metrics": report.challenger.metrics | {"coverage": 0.1}})
    decision = decide(report.model_copy(update={"challenger": poor}), POLICY, per_user, SOUND)
    assert failed(decision) == ["guardrail.coverage"]
    assert decision.reasons == ["coverage 0.1 is below 0.2"]


def test_low_index_recall_keeps_the_champion() -> None:
    per_user = figures()
    decision = decide(report_of(per_user, guardrails=GUARDED | {"index_recall": 0.9}), POLICY, per_user, SOUND)
    assert failed(decision) == ["guardrail.index_recall"]


@pytest.mark.parametrize(
    ("with_champion", "gain", "check"),
    [(True, 0.5, "plausible_gain"), (True, 0.8, "plausible"), (False, 0.8, "plausible"), (False, 0.5, None)],
)
def test_too_good_to_be_true_asks_for_a_person(with_champion: bool, gain: float, check: str | None) -> None:
    per_user = figures(gain=gain)
    report = report_of(per_user, with_champion=with_champion)
    decision = decide(report, POLICY, per_user, SOUND if with_champion else FIRST)
    if check is None:
        assert decision.promote
        return
    assert f"{check}.recall_at_20" in failed(decision)
    assert (decision.promote, decision.needs_review) == (False, True)
    assert "too good to believe" in decision.reasons[0]


def test_implausible_and_broken_is_not_worth_a_persons_time() -> None:
    per_user = figures(gain=0.5)
    decision = decide(report_of(per_user, guardrails=GUARDED | {"index_recall": 0.1}), POLICY, per_user, SOUND)
    assert not decision.needs_review


@pytest.mark.parametrize(
    ("mode", "promote", "asks"), [("auto", True, False), ("review", True, True), ("review_when_doubtful", True, False)]
)
def test_mode_decides_whether_a_person_is_asked(mode: str, promote: bool, asks: bool) -> None:
    per_user = figures()
    decision = decide(report_of(per_user), with_policy(mode=mode), per_user, SOUND)
    assert (decision.promote, decision.needs_review) == (promote, asks)


def test_nobody_is_asked_about_a_challenger_that_failed() -> None:
    per_user = figures(gain=0.0)
    decision = decide(report_of(per_user), with_policy(mode="review"), per_user, SOUND)
    assert (decision.promote, decision.needs_review) == (False, False)


def drop(report: EvaluationReport, part: str, name: str) -> EvaluationReport:
    value = report.model_dump()
    if part == "report":
        del value[name]
    elif part == "popularity":
        del value["baselines"]["popularity"]["metrics"][name]
    else:
        place = value[part]["metrics"] if part in ("challenger", "champion") else value[part]
        del place[name]
    return EvaluationReport.model_validate(value)


def test_a_challenger_that_item_knn_beats_is_not_promoted() -> None:
    per_user = figures()
    report = report_of(per_user)
    strong = report.challenger.metrics["recall_at_20"] + 0.01
    neighbours = report.baselines["item_knn"].model_copy(
        update={"metrics": {"recall_at_20": strong, "ndcg_at_10": 0.0}}
    )
    decision = decide(
        report.model_copy(update={"baselines": report.baselines | {"item_knn": neighbours}}), POLICY, per_user, SOUND
    )
    assert failed(decision) == ["above_item_knn.recall_at_20"]


def test_an_index_that_costs_recall_keeps_the_champion() -> None:
    per_user = figures()
    costly = report_of(per_user, guardrails={"index_recall": 0.99, "exact_index_gain": 0.02})
    assert failed(decide(costly, POLICY, per_user, SOUND)) == ["guardrail.exact_index_gain"]


def test_lists_far_from_the_users_tastes_keep_the_champion() -> None:
    per_user = figures()
    report = report_of(per_user)
    far = report.challenger.model_copy(update={"metrics": report.challenger.metrics | {"miscalibration": 1.6}})
    decision = decide(report.model_copy(update={"challenger": far}), POLICY, per_user, SOUND)
    assert failed(decision) == ["guardrail.miscalibration"]


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "said"),
    [
        ("bundle_megabytes", 5000.0, 4900.0, "bundle_megabytes 5000 is above 4000"),
        ("bundle_megabytes", 400.0, 100.0, "bundle_megabytes 400 is above 300"),
        ("bundle_megabytes", 45.0, 10.0, None),
        ("bundle_index_recall", 0.94, 0.99, "bundle_index_recall 0.94 is below 0.95"),
        ("bundle_recall_ratio", 0.5, 1.0, "bundle_recall_ratio 0.5 is below 0.8"),
    ],
)
def test_bundle_that_is_not_fit_to_serve_keeps_the_champion(
    name: str, ours: float, theirs: float, said: str | None
) -> None:
    per_user = figures()
    inputs = SOUND.model_copy(
        update={
            "figures": SOUND.figures | {name: ours},
            "champion_figures": SOUND.champion_figures | {name: theirs},
        }
    )
    decision = decide(report_of(per_user), POLICY, per_user, inputs)
    assert failed(decision) == ([f"guardrail.{name}"] if said else [])
    assert said is None or decision.reasons == [said]


def test_lists_that_show_what_is_popular_alone_keep_the_champion() -> None:
    per_user = figures()
    report = report_of(per_user)
    bland = report.challenger.model_copy(update={"metrics": report.challenger.metrics | {"novelty": 5.5}})
    decision = decide(report.model_copy(update={"challenger": bland}), POLICY, per_user, SOUND)
    assert failed(decision) == ["guardrail.novelty"]
    assert decision.reasons == ["novelty 5.5 is below 5.6"]


def test_configured_attribute_that_nobody_has_fails_closed_and_is_named() -> None:
    per_user = figures()
    report = report_of(per_user, slice_attributes={"contry": 0, "country": 90})
    decision = decide(report, POLICY, per_user, SOUND)
    assert failed(decision) == ["slice.contry"]
    assert decision.reasons == [
        "slice.contry cannot be computed: it needs a known value of the attribute contry, and nobody has one"
    ]
    country = next(check for check in decision.checks if check.name == "slice.country")
    assert country.message == "country: nobody with a value of it tonight, nobody to lose"


def test_a_value_of_a_configured_attribute_is_not_sacrificed() -> None:
    per_user = figures()
    chosen = pl.col("user_id").str.slice(1).cast(pl.Int64) % 4 == 0
    hurt = pl.when(chosen & (pl.col("model") == "challenger")).then(0.0).otherwise(pl.col("recall_at_20"))
    per_user = per_user.with_columns(hurt.alias("recall_at_20"), chosen.alias("slice_country=DE"))
    assert "slice.country=DE" in failed(decide(report_of(per_user), POLICY, per_user, SOUND))


@pytest.mark.parametrize(
    ("part", "name", "check"),
    [
        ("report", "baselines", "above_popularity.recall_at_20"),
        ("popularity", "ndcg_at_10", "above_popularity.ndcg_at_10"),
        ("challenger", "recall_at_20", "above_popularity.recall_at_20"),
        ("champion", "recall_at_20", "better_than_champion.recall_at_20"),
        ("champion", "coverage", "guardrail.coverage"),
        ("guardrails", "index_recall", "guardrail.index_recall"),
        ("guardrails", "exact_index_gain", "guardrail.exact_index_gain"),
    ],
)
def test_missing_figure_fails_closed_and_is_named(part: str, name: str, check: str) -> None:
    per_user = figures()
    decision = decide(drop(report_of(per_user), part, name), POLICY, per_user, SOUND)
    assert not decision.promote
    assert check in failed(decision)
    assert any(reason.startswith(f"{check} cannot be computed: it needs") for reason in decision.reasons)


def test_figure_that_is_no_number_is_missing() -> None:
    per_user = figures()
    decision = decide(report_of(per_user, guardrails=GUARDED | {"index_recall": float("nan")}), POLICY, per_user, SOUND)
    assert failed(decision) == ["guardrail.index_recall"]


#: What the policy asks of every night with a champion, and only the users' figures answer.
UNASKED = [
    "better_than_champion.recall_at_20",
    "plausible_gain.recall_at_20",
    "not_worse.ndcg_at_10",
    *("slice.new_users", "slice.new_items", "slice.long_tail"),
]
SPOILED = {
    "texts for figures": lambda frame: frame.with_columns(recall_at_20=pl.lit("much")),
    "lists for figures": lambda frame: frame.with_columns(ndcg_at_10=pl.concat_list("ndcg_at_10")),
    "a slice of texts": lambda frame: frame.with_columns(slice_new_users=pl.lit("perhaps")),
    "no frame at all": lambda frame: None,
    "a metric's column": lambda frame: frame.drop("recall_at_20"),
    "a user of one model": lambda frame: frame.slice(1),
    "a user twice": lambda frame: pl.concat([frame, frame.slice(0, 1)]),
    "a null": lambda frame: frame.with_columns(
        recall_at_20=pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise(pl.col("recall_at_20"))
    ),
    "a NaN": lambda frame: frame.with_columns(
        recall_at_20=pl.when(pl.int_range(pl.len()) == 3).then(float("nan")).otherwise(pl.col("recall_at_20"))
    ),
    "a whole model": lambda frame: frame.filter(pl.col("model") == "challenger"),
    "figures of another night": lambda frame: frame.with_columns(recall_at_20=pl.col("recall_at_20") + 0.01),
}


@pytest.mark.parametrize("spoil", SPOILED, ids=str)
def test_spoiled_per_user_figures_fail_closed(spoil: str) -> None:
    per_user = figures()
    decision = decide(report_of(per_user), POLICY, SPOILED[spoil](per_user), SOUND)
    assert failed(decision) == UNASKED
    for name, reason in zip(UNASKED, decision.reasons, strict=True):
        assert reason.startswith(f"{name} cannot be computed: it needs ")


def test_slices_of_attributes_are_named_too_when_nothing_can_be_paired() -> None:
    per_user = figures()
    report = report_of(per_user, slice_attributes={"country": 30})
    of_country = {"country=DE": {"recall_at_20": 0.2, "num_users": 40.0}}
    report = report.model_copy(update={"challenger": report.challenger.model_copy(update={"slices": of_country})})
    decision = decide(report, POLICY, None, SOUND)
    assert failed(decision) == [*UNASKED, "slice.country=DE", "slice.country"]


def test_missing_slice_column_fails_closed() -> None:
    per_user = figures().drop("slice_long_tail")
    assert failed(decide(report_of(per_user), POLICY, per_user, SOUND)) == ["slice.long_tail"]


def test_inputs_nobody_reported_fail_closed() -> None:
    per_user = figures()
    assert failed(decide(report_of(per_user), POLICY, per_user, None)) == [
        "guardrail.bundle_index_recall",
        "guardrail.bundle_megabytes",
        "guardrail.bundle_recall_ratio",
        "guardrail.latency_p99_seconds",
        "input.validation",
        "input.leak_canary",
        "input.features_served",
        "input.bundle",
        "input.skew",
    ]


def test_failed_input_keeps_the_champion_even_when_nobody_required_it() -> None:
    per_user = figures()
    inputs = SOUND.model_copy(update={"passed": SOUND.passed | {"drift": False}})
    assert failed(decide(report_of(per_user), POLICY, per_user, inputs)) == ["input.drift"]


@pytest.mark.parametrize(
    ("name", "figure", "reason"),
    [
        ("coverage", 0.009, "coverage 0.009 is below 0.01"),
        ("novelty", 4.7, "novelty 4.7 is below 4.75"),
        ("miscalibration", 2.6, "miscalibration 2.6 is above 2.5"),
    ],
)
def test_what_popularity_shows_bounds_a_first_champion(name: str, figure: float, reason: str) -> None:
    per_user = figures()
    report = report_of(per_user, with_champion=False)
    poor = report.challenger.model_copy(update={"metrics": report.challenger.metrics | {name: figure}})
    decision = decide(report.model_copy(update={"challenger": poor}), POLICY, per_user, FIRST)
    assert failed(decision) == [f"guardrail.{name}"]
    assert decision.reasons == [reason]
    bare = {"popularity": ModelReport(model="popularity", metrics=dict.fromkeys(METRICS, 0.05))}
    unknown = decide(report.model_copy(update={"baselines": report.baselines | bare}), POLICY, per_user, FIRST)
    assert f"guardrail.{name} cannot be computed: it needs {name} of popularity" in unknown.reasons


def test_guardrail_that_is_a_ratio_says_that_it_has_no_bound_without_a_champion() -> None:
    per_user = figures()
    guardrails = POLICY.guardrails | {"coverage": GuardrailRule(min_ratio_to_champion=0.5)}
    policy = POLICY.model_copy(update={"guardrails": guardrails})
    first = decide(report_of(per_user, with_champion=False), policy, per_user, FIRST)
    said = {check.name: check for check in first.checks}
    check = said["guardrail.coverage"]
    assert (check.passed, check.bound) == (True, None)
    assert check.message.endswith("has no bound without a champion")
    assert said["guardrail.index_recall"].message.endswith("is within its bounds")
    # one that has a bound of its own beside the ratio keeps it
    assert said["guardrail.bundle_megabytes"].bound == 4000


def test_skew_is_judged_when_the_policy_asks() -> None:
    per_user = figures()
    policy = with_policy(inputs={"required": ["validation"], "max_skew": 1e-6})
    silent = SOUND.model_copy(update={"figures": {name: f for name, f in SOUND.figures.items() if name != "max_skew"}})
    assert failed(decide(report_of(per_user), policy, per_user, silent)) == ["input.skew"]
    skewed = SOUND.model_copy(update={"figures": SOUND.figures | {"max_skew": 0.1}})
    assert failed(decide(report_of(per_user), policy, per_user, skewed)) == ["input.skew"]
    same = SOUND.model_copy(update={"figures": SOUND.figures | {"max_skew": 0.0}})
    assert decide(report_of(per_user), policy, per_user, same).promote


@pytest.mark.parametrize("text", ["", "mode: auto", "inputs: {}", "inputs: {required: [validation], max_skew: 0.9}"])
def test_leak_canary_and_skew_are_asked_whatever_the_policy_says(text: str) -> None:
    per_user = figures()
    policy = load_policy(text)
    assert decide(report_of(per_user), policy, per_user, SOUND).promote
    unseen = SOUND.model_copy(
        update={
            "passed": {name: passed for name, passed in SOUND.passed.items() if name != "leak_canary"},
            "figures": {name: figure for name, figure in SOUND.figures.items() if name != "max_skew"},
        }
    )
    assert failed(decide(report_of(per_user), policy, per_user, unseen)) == ["input.leak_canary", "input.skew"]


def test_what_is_always_asked_stands_in_the_policy_once() -> None:
    assert load_policy("inputs: {required: []}").inputs.required == ("leak_canary",)
    assert load_policy("inputs: {required: [leak_canary, bundle]}").inputs.required == ("leak_canary", "bundle")


def latency(ours: float, theirs: float | None) -> GateInputs:
    champion = {} if theirs is None else {"latency_p99_seconds": theirs}
    return SOUND.model_copy(
        update={
            "figures": SOUND.figures | {"latency_p99_seconds": ours},
            "champion_figures": SOUND.champion_figures | champion if champion else {"bundle_megabytes": 10.0},
        }
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "stopped"),
    [
        *[(0.2, 0.09, True), (0.2, 0.11, False), (0.019, 0.001, True), (0.0051, 0.001, True), (0.005, 0.001, False)],
        *[(1.5, 1.4, True), (0.01, None, True)],
    ],
)
def test_slow_bundle_is_kept_out_by_its_latency_against_the_champions(
    ours: float, theirs: float | None, stopped: bool
) -> None:
    per_user = figures()
    decision = decide(report_of(per_user), POLICY, per_user, latency(ours, theirs))
    assert failed(decision) == (["guardrail.latency_p99_seconds"] if stopped else [])


def test_damaged_bundle_is_kept_out_and_the_file_is_named() -> None:
    per_user = figures()
    inputs = SOUND.model_copy(
        update={
            "passed": SOUND.passed | {"bundle": False},
            "messages": {"bundle": "index.faiss: expected SHA-256"},
        }
    )
    assert decide(report_of(per_user), POLICY, per_user, inputs).reasons == ["bundle: index.faiss: expected SHA-256"]


def estimate(**changes: float) -> GateInputs:
    values: dict[str, object] = {
        "method": "snips",
        "value": 0.10,
        "lower": 0.08,
        "upper": 0.12,
        "logged_value": 0.10,
        "effective_sample_size": 5000.0,
        "num_rows": 20_000,
    }
    return SOUND.model_copy(update={"off_policy": (OffPolicyEstimate.model_validate(values | changes),)})


def test_off_policy_loss_keeps_the_champion_and_a_small_sample_does_not_conclude() -> None:
    per_user = figures()
    report = report_of(per_user)
    assert decide(report, POLICY, per_user, estimate()).promote
    assert failed(decide(report, POLICY, per_user, estimate(upper=0.07))) == ["off_policy.snips"]
    small = decide(report, POLICY, per_user, estimate(upper=0.07, effective_sample_size=20.0))
    assert small.promote
    assert "too small to conclude, needed 100" in small.checks[-1].message
    required = with_policy(off_policy={"required": True})
    assert failed(decide(report, required, per_user, estimate(effective_sample_size=20.0))) == ["off_policy.snips"]
    assert failed(decide(report, required, per_user, SOUND)) == ["off_policy"]


@pytest.mark.parametrize("name", ["value", "upper", "effective_sample_size", "logged_value"])
def test_off_policy_figure_that_is_no_number_fails_closed(name: str) -> None:
    per_user = figures()
    decision = decide(report_of(per_user), POLICY, per_user, estimate(**{name: float("nan")}))
    assert failed(decision) == ["off_policy.snips"]
    assert decision.reasons[0].startswith("off_policy.snips cannot be computed: it needs figures that are numbers")


@pytest.mark.parametrize("changes", [{"effective_sample_size": 20.0}, {"mean_weight": 0.3}])
def test_log_that_does_not_conclude_is_a_doubt_that_a_person_hears_of(changes: dict[str, float]) -> None:
    per_user = figures()
    inputs = estimate(upper=0.07, **changes)
    assert decide(report_of(per_user), POLICY, per_user, inputs).promote
    asked = decide(report_of(per_user), with_policy(mode="review_when_doubtful"), per_user, inputs)
    assert (asked.promote, asked.needs_review) == (True, True)
    assert any("does not conclude" in reason or "too small to conclude" in reason for reason in asked.reasons)
    required = with_policy(off_policy={"required": True})
    strict = decide(report_of(per_user), required, per_user, inputs)
    assert (failed(strict), strict.needs_review) == (["off_policy.snips"], False)


def past(mean: float, strength: float, noise: float, gain: float) -> pl.DataFrame:
    """Figures whose gain goes with what a user did before the window; the judged users did `mean`, everybody 0."""
    generator = np.random.default_rng(5)
    before = np.tile(generator.normal(mean, 1.0, size=400), 2)
    change = gain + strength * before + np.tile(generator.normal(0, noise, size=400), 2)
    ours = pl.col("model") == "challenger"
    return figures(gain=0.0).with_columns(
        (pl.when(ours).then(0.2 + pl.Series(change)).otherwise(0.2)).alias("recall_at_20"),
        covariate_num_interactions=pl.Series(before),
    )


def test_luck_in_who_was_drawn_promotes_nobody() -> None:
    per_user = past(mean=0.5, strength=0.1, noise=0.05, gain=0.0)
    report = report_of(per_user)
    assert decide(report, POLICY, per_user, SOUND).promote
    known = SOUND.model_copy(update={"covariate_means": {"num_interactions": 0.0}})
    assert failed(decide(report, POLICY, per_user, known)) == ["better_than_champion.recall_at_20"]


def test_gain_that_the_users_past_would_hide_is_seen() -> None:
    per_user = past(mean=0.0, strength=0.2, noise=0.05, gain=0.02)
    report = report_of(per_user)
    assert failed(decide(report, POLICY, per_user, SOUND)) == ["better_than_champion.recall_at_20"]
    known = SOUND.model_copy(update={"covariate_means": {"num_interactions": 0.0}})
    assert decide(report, POLICY, per_user, known).promote


def test_night_that_is_tried_again_must_show_more_and_is_seen() -> None:
    per_user = figures(gain=0.0098)
    first = decide(report_of(per_user), POLICY, per_user, SOUND)
    assert first.promote
    again = SOUND.model_copy(update={"earlier_attempts": ("2", "3")})
    third = decide(report_of(per_user), POLICY, per_user, again)
    assert failed(third) == ["better_than_champion.recall_at_20"]
    assert "99.89 % interval" in third.reasons[0]
    clear = figures(gain=0.1)
    promoted = decide(report_of(clear), POLICY, clear, again)
    assert promoted.promote
    doubt = next(check for check in promoted.checks if check.doubtful)
    assert doubt.name == "first_attempt"
    assert "version 3 of this night, after v2, v3" in doubt.message
    asked = decide(report_of(clear), with_policy(mode="review_when_doubtful"), clear, again)
    assert asked.needs_review


def test_models_that_differ_for_nobody_state_no_gain_that_could_have_been_shown() -> None:
    per_user = figures(gain=0.0)
    same = per_user.filter(pl.col("model") == "champion v1")
    per_user = pl.concat([same.with_columns(model=pl.lit("challenger")), same])
    decision = decide(report_of(per_user), POLICY, per_user, SOUND)
    assert failed(decision) == ["better_than_champion.recall_at_20"]
    assert "no user's figure differs, so nothing can be said of what they could show" in decision.reasons[0]


def test_same_evidence_gives_the_same_decision() -> None:
    per_user = figures(gain=0.01)
    first = decide(report_of(per_user), POLICY, per_user, SOUND)
    assert decide(report_of(per_user), POLICY, per_user.sample(fraction=1, shuffle=True, seed=1), SOUND) == first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("primry: {}", "primry: Extra inputs are not permitted"),
        ("primary: {marge: 1}", r"primary\.marge"),
        ("mode: sometimes", "mode: Input should be 'auto'"),
        ("primary: {confidence: 2}", r"primary\.confidence.*less than 1"),
        ("primary: {margin: .nan}", r"primary\.margin"),
        ("guardrails: {coverage: {max: .nan}}", r"guardrails\.coverage\.max.*finite"),
        ("guardrails: {coverage: {min: -.inf}}", r"guardrails\.coverage\.min.*finite"),
        ("guardrails: {coverage: {}}", r"guardrails\.coverage.*it would always pass"),
        ("guardrails: {coverage: {min: 1, ignore_below: 2}}", r"guardrails\.coverage.*nothing bounds it from above"),
        ("inputs: {max_skew: null}", r"inputs\.max_skew: Input should be a valid number"),
        ("inputs: {max_skew: .inf}", r"inputs\.max_skew.*finite"),
        ("inputs: {max_skew: 1}", r"inputs\.max_skew.*less than 1"),
        ("primary: {margin: '0.5'}", r"primary\.margin.*got '0\.5': write a number without quotes"),
        ("primary: {min_users: '30'}", r"primary\.min_users.*got '30'"),
        ("primary: {margin: 1e-3}", r"primary\.margin.*got '1e-3': write a number without quotes, as 0\.001"),
        ("primary: {margin: true}", r"primary\.margin"),
        ("primary: {min_users: 30.0}", r"primary\.min_users"),
        ("off_policy: {enabled: 'yes'}", r"off_policy\.enabled"),
        ("slices: {names: new_users}", r"slices\.names"),
        ("mode: auto\nmode: review", r"the key 'mode' is given twice(.|\n)*line 2"),
        ("primary:\n  margin: 0.5\n  margin: 0.0\n", r"the key 'margin' is given twice(.|\n)*line 3"),
        ("guardrails: {coverage: {min: 1}, coverage: {min: 0}}", "the key 'coverage' is given twice"),
        ("a: [", "expected YAML"),
        ("- 1", "expected keys and values, got list"),
    ],
)
def test_wrong_policy_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_policy(text)


def test_policy_of_the_repository_names_every_key() -> None:
    written = yaml.safe_load(Path("mlflow/promotion_policy.yaml").read_text())
    whole = PromotionPolicy().model_dump()
    assert written.keys() == whole.keys()
    for part in whole.keys() - {"mode", "guardrails", "non_inferior"}:
        assert written[part].keys() == whole[part].keys(), part
    assert written["non_inferior"]["ndcg_at_10"].keys() == whole["non_inferior"]["ndcg_at_10"].keys()


def test_empty_policy_is_the_default_one_and_the_repositorys_own() -> None:
    assert load_policy("# nothing\n") == PromotionPolicy() == POLICY


def test_comments_and_order_do_not_change_the_policys_digest() -> None:
    assert (
        load_policy("mode: review\nprimary: {margin: 0.1}").digest
        == load_policy("# why\nprimary: {margin: 0.1}\nmode: review").digest
    )
