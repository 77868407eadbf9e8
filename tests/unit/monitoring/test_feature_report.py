"""The report finds what was planted: what is missing, moved, redundant and needed; and its page stands alone."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from evensong.monitoring.feature_page import pictures, render
from evensong.monitoring.feature_report import FeatureReport, Importance, build_report, permutation_importance
from evensong.types import Frame


def world(seed: int, *, shift: float = 0.0, num_rows: int = 600) -> Frame:
    draw = np.random.default_rng(seed)
    signal = draw.normal(size=num_rows)
    noise = draw.normal(size=num_rows)
    taste = ["bread", "milk"] if not shift else ["milk", "salt"]
    text = draw.normal(size=(num_rows, 4)) + np.array([0, 0, shift, 0])
    text[::10] = 0
    return pl.DataFrame(
        {
            "signal": signal,
            "echo": np.exp(signal) + 0.001,
            "noise": noise,
            "moved": draw.normal(shift, size=num_rows),
            "gone": [None if i % 4 == 0 else 1.0 * i for i in range(num_rows)],
            "colour": draw.choice(["red", "blue"], num_rows),
            "history": [[taste[i % 2]] * (i % 5) for i in range(num_rows)],
            "shares": [[0.5 + shift / 10] * (i % 3) for i in range(num_rows)],
            "text": pl.Series(text, dtype=pl.Array(pl.Float64, 4)),
            "when": [datetime(2026, 1, 1 + i % 20, tzinfo=UTC) for i in range(num_rows)],
            "label": (signal + 0.1 * noise > 0).astype(int),
        }
    )


FEATURES = ["signal", "echo", "noise", "moved", "gone", "colour", "history", "shares", "text", "when"]


def score(frame: Frame) -> np.ndarray:
    return frame["signal"].to_numpy() > 0


def accuracy(frame: Frame, predictions: np.ndarray) -> float:
    return float((frame["label"].to_numpy() == predictions).mean())


def losses(frame: Frame, features: list[str | tuple[str, ...]], seed: int = 5) -> list[Importance]:
    return permutation_importance(frame, features, score, accuracy, generator=np.random.default_rng(seed))


@pytest.fixture(scope="module")
def report() -> FeatureReport:
    return build_report(world(1), world(2, shift=2), features=FEATURES)


def test_what_is_missing_and_how_values_are_spread(report: FeatureReport) -> None:
    found = {one.name: one for one in report.summaries}
    assert found["gone"].missing == 0.25
    assert found["colour"].num_values == 2
    assert found["moved"].mean == pytest.approx(2, abs=0.2)
    assert list(found["signal"].quantiles) == sorted(found["signal"].quantiles)
    assert found["history (length)"].quantiles[-1] == 4
    assert found["history (elements)"].num_values == 2
    # a text that says nothing is a vector of zeros
    assert found["text (norm)"].missing == 0.1


def test_only_what_has_moved_has_moved(report: FeatureReport) -> None:
    moved = {one.name for one in report.drift if one.verdict == "much"}
    assert moved == {"moved", "history (elements)", "shares (elements)", "text (norm)", "text [2]"}
    assert all(one.kl > 0.1 for one in report.drift if one.name in moved)


def test_lists_of_the_same_lengths_drift_by_what_is_in_them(report: FeatureReport) -> None:
    found = {one.name: one for one in report.drift}
    assert found["history (length)"].psi == pytest.approx(0, abs=0.001)
    bins = found["history (elements)"].histogram
    assert dict(zip(bins.labels, bins.training, strict=True)) == pytest.approx(
        {"bread": 0.5, "milk": 0.5, "salt": 0, "other": 0, "missing": 0}, abs=0.05
    )
    assert dict(zip(bins.labels, bins.current, strict=True))["salt"] == pytest.approx(0.5, abs=0.05)


def test_features_that_say_the_same_are_one_group(report: FeatureReport) -> None:
    assert report.redundant == (("signal", "echo"),)


def test_correlation_is_of_every_two_features_with_a_value_a_row(report: FeatureReport) -> None:
    at = report.correlated.index
    assert report.correlation[at("signal")][at("echo")] == pytest.approx(1)
    assert abs(report.correlation[at("signal")][at("noise")] or 0) < 0.2
    assert {"history (length)", "text (norm)", "when"} <= set(report.correlated)
    assert not {"history (elements)", "colour"} & set(report.correlated)


def test_the_score_needs_what_it_reads_and_nothing_else() -> None:
    found = losses(world(2), [*FEATURES[:2], ("moved", "gone")])
    assert [one.name for one in found] == ["signal", "echo", "moved + gone"]
    assert found[0].loss > 0.3
    assert all(one.loss == one.deviation == 0 for one in found[1:])


def test_importance_says_how_far_its_shuffles_differ() -> None:
    found = losses(world(2), ["signal"])[0]
    assert 0 < found.deviation < 0.1
    once = permutation_importance(
        world(2), ["signal"], score, accuracy, num_repeats=1, generator=np.random.default_rng(5)
    )
    assert once[0].deviation == 0


def test_features_of_a_group_are_shuffled_together() -> None:
    frame = world(2).with_columns(twin=pl.col("signal"))

    def both(rows: Frame) -> np.ndarray:
        # who reads two features that belong together is lost only where they fall apart
        return np.where(rows["signal"] == rows["twin"], rows["label"], 1 - rows["label"])

    draw = np.random.default_rng(1)
    apart = permutation_importance(frame, ["signal"], both, accuracy, generator=draw)
    together = permutation_importance(frame, [("signal", "twin")], both, accuracy, generator=draw)
    assert apart[0].loss > 0.9
    assert together[0].loss == 0


def test_length_of_aligned_lists_is_told_once() -> None:
    frame = world(1).with_columns(types="history")
    found = build_report(frame, frame, features=["history", "types", "shares"], aligned=[("history", "types")])
    names = [one.name for one in found.summaries]
    lengths = ["history (length)", "history (elements)", "types (elements)", "shares (length)", "shares (elements)"]
    assert names == lengths
    assert found.redundant == ()


def test_a_chain_of_correlations_is_one_group_and_a_constant_is_in_none() -> None:
    x = np.arange(50.0)
    frame = pl.DataFrame({"a": x, "b": -x, "c": np.ones(50), "d": [None] * 50, "e": x % 7})
    found = build_report(frame, frame, redundant_above=0.95)
    assert found.redundant == (("a", "b"),)
    assert found.correlation[0][2] is None


def test_the_same_rows_give_the_same_report() -> None:
    first, second = (build_report(world(1), world(2), features=FEATURES) for _ in range(2))
    assert first == second
    assert FeatureReport.model_validate_json(first.model_dump_json()) == first
    json.loads(first.model_dump_json())
    assert losses(world(2), ["signal"]) == losses(world(2), ["signal"])


def whole(report: FeatureReport) -> FeatureReport:
    """With importance, as a night has it."""
    found = (*losses(world(2), ["signal", "gone"]), Importance(name="noise", loss=-0.01, deviation=0.002))
    more = {"model": "version 3", "metric": 0.93, "importance": found, "unread": ("colour",), "notes": ("A note.",)}
    return report.model_copy(update=more)


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(report: FeatureReport) -> None:
    page = render(whole(report))
    assert not re.search(r"(src|href|url\()", page)
    assert "<script" not in page
    checker = _Balanced()
    checker.feed(page)
    assert checker.open == []
    for one in report.summaries:
        assert one.name in page
    for said in (
        "version 3",
        "0.93",
        "It does not read colour",
        "Nothing is lost without gone",
        "A note.",
        "signal, echo",
        "PSI",
        "KL",
    ):
        assert said in page


def test_every_picture_of_the_page_is_a_file_of_its_own(report: FeatureReport) -> None:
    found = pictures(whole(report))
    assert {"importance.svg", "correlation.svg", "distributions/moved.svg"} <= found.keys()
    assert len(found) == 2 + len(report.drift)
    for picture in found.values():
        assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"


def test_a_feature_named_like_markup_is_shown_as_text() -> None:
    frame = pl.DataFrame({"<script>alert(1)</script>": [1.0, 2.0, 3.0], '"x': ["<b>", "<b>", "c"]})
    page = render(build_report(frame, frame))
    assert "<script" not in page
    assert page.count("<b>") == page.count("</b>") == 2


def test_empty_frames_give_a_report_too() -> None:
    frame = world(1).select(FEATURES)
    assert render(build_report(frame, frame.clear()))
    assert render(build_report(frame.clear(), frame.clear()))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="current frame lacks signal"):
        build_report(world(1), world(2).drop("signal"), features=FEATURES)
    with pytest.raises(ValueError, match="at least one feature"):
        build_report(world(1), world(2), features=[])


class _Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
