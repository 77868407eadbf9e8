"""The report finds what was planted: what is missing, moved, redundant and needed; and its page stands alone."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

from evensong.monitoring.feature_report import FeatureReport, build_report, render
from evensong.types import Frame


def world(seed: int, *, shift: float = 0.0, num_rows: int = 600) -> Frame:
    draw = np.random.default_rng(seed)
    signal = draw.normal(size=num_rows)
    noise = draw.normal(size=num_rows)
    return pl.DataFrame(
        {
            "signal": signal,
            "echo": np.exp(signal) + 0.001,
            "noise": noise,
            "moved": draw.normal(shift, size=num_rows),
            "gone": [None if i % 4 == 0 else 1.0 * i for i in range(num_rows)],
            "colour": draw.choice(["red", "blue"], num_rows),
            "history": [["a"] * (i % 5) for i in range(num_rows)],
            "when": [datetime(2026, 1, 1 + i % 20, tzinfo=UTC) for i in range(num_rows)],
            "label": (signal + 0.1 * noise > 0).astype(int),
        }
    )


FEATURES = ["signal", "echo", "noise", "moved", "gone", "colour", "history", "when"]


def score(frame: Frame) -> np.ndarray:
    return frame["signal"].to_numpy() > 0


def accuracy(frame: Frame, predictions: np.ndarray) -> float:
    return float((frame["label"].to_numpy() == predictions).mean())


@pytest.fixture(scope="module")
def report() -> FeatureReport:
    return build_report(world(1), world(2, shift=2), score, metric=accuracy, features=FEATURES)


def test_what_is_missing_and_how_values_are_spread(report: FeatureReport) -> None:
    found = {one.name: one for one in report.summaries}
    assert found["gone"].missing == 0.25
    assert found["colour"].num_values == 2
    assert found["moved"].mean == pytest.approx(2, abs=0.2)
    assert list(found["signal"].quantiles) == sorted(found["signal"].quantiles)
    assert found["history (length)"].quantiles[-1] == 4


def test_only_the_moved_feature_has_moved(report: FeatureReport) -> None:
    assert [one.name for one in report.drift if one.verdict == "much"] == ["moved"]


def test_features_that_say_the_same_are_one_group(report: FeatureReport) -> None:
    assert report.redundant == (("signal", "echo"),)


def test_the_score_needs_what_it_reads_and_nothing_else(report: FeatureReport) -> None:
    assert report.importance[0].name == "signal"
    assert report.importance[0].loss > 0.3
    assert all(one.loss == 0 for one in report.importance[1:])
    assert report.metric == accuracy(world(2, shift=2), score(world(2, shift=2)))


def test_a_chain_of_correlations_is_one_group_and_a_constant_is_in_none() -> None:
    x = np.arange(50.0)
    frame = pl.DataFrame({"a": x, "b": -x, "c": np.ones(50), "d": [None] * 50, "e": x % 7})
    found = build_report(frame, frame, redundant_above=0.95)
    assert found.redundant == (("a", "b"),)
    assert found.correlation[0][2] is None


def test_the_same_rows_give_the_same_report() -> None:
    first, second = (
        build_report(world(1), world(2), score, metric=accuracy, features=FEATURES, generator=np.random.default_rng(5))
        for _ in range(2)
    )
    assert first == second
    assert FeatureReport.model_validate_json(first.model_dump_json()) == first
    json.loads(first.model_dump_json())


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(report: FeatureReport) -> None:
    page = render(report)
    assert not re.search(r"(src|href|url\()", page)
    assert "<script" not in page
    checker = _Balanced()
    checker.feed(page)
    assert checker.open == []
    for one in report.summaries:
        assert one.name in page


def test_a_feature_named_like_markup_is_shown_as_text() -> None:
    frame = pl.DataFrame({"<script>alert(1)</script>": [1.0, 2.0, 3.0], '"x': ["<b>", "<b>", "c"]})
    page = render(build_report(frame, frame))
    assert "<script" not in page
    assert "<b>" not in page


def test_empty_frames_give_a_report_too() -> None:
    frame = world(1).select(FEATURES)
    assert render(build_report(frame, frame.clear()))
    assert render(build_report(frame.clear(), frame.clear()))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="current frame lacks signal"):
        build_report(world(1), world(2).drop("signal"), features=FEATURES)
    with pytest.raises(ValueError, match="both a score and a metric"):
        build_report(world(1), world(2), score)
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
