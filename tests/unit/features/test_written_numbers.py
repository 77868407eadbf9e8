"""Numbers and dates as people write them, each read by itself."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evensong.features.written_numbers import days, numbers, units


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12.0),
        (" -3.5 ", -3.5),
        ("1e3", 1000.0),
        ("$1,200.50", 1200.5),
        ("CHF 12'000", 12000.0),
        ("12\u202f000 kr", 12000.0),
        ("12 kg", 12.0),
        ("4.5%", 4.5),
        ("TRUE", 1.0),
        ("false", 0.0),
        ("25-34", None),
        ("55+", None),
        ("1,5", None),
        ("€1.200,50", None),
        ("12,34", None),
        ("version 1.2.3", None),
        ("", None),
        (None, None),
        ("yes", None),
    ],
)
def test_a_number_is_read_and_anything_else_is_none(text: str | None, value: float | None) -> None:
    assert numbers(pl.Series([text], dtype=pl.String)).to_list() == [value]


@pytest.mark.parametrize(
    ("text", "value"), [("€1.200,50", 1200.5), ("1,5", 1.5), ("1200", 1200.0), ("1.200", 1200.0), ("1,200.50", None)]
)
def test_a_comma_may_stand_before_the_fraction(text: str, value: float | None) -> None:
    assert numbers(pl.Series([text]), ",").to_list() == [value]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**12), 10**12), max_size=5))
def test_what_python_writes_is_read_again(values: list[float]) -> None:
    texts = pl.Series([repr(value) for value in values], dtype=pl.String)
    assert numbers(texts).to_list() == [float(value) for value in values]


def test_units_are_found_to_be_compared() -> None:
    assert units(pl.Series(["12 kg", "500 g", "3", None, "€ 4"])) == ["g", "kg", "€"]


def test_dates_become_days() -> None:
    assert days(pl.Series(["1970-01-02", "2024-02-29T12:00:00Z", "soon", None]), "iso").to_list() == [
        1,
        19782,
        None,
        None,
    ]
    assert days(pl.Series(["29.02.2024", "2024-02-29"]), "%d.%m.%Y").to_list() == [19782, None]
    assert days(pl.Series(["29.02.2024 06:00"]), "%d.%m.%Y %H:%M").to_list() == [19782.25]
