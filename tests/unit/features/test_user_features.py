"""Who users are, what they did lately, and their last steps: small worlds, and night by night against all at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from evensong.errors import SourceError
from evensong.features.columns import CategoricalColumn, ColumnSet
from evensong.features.state import ViewState
from evensong.features.transformations import with_category
from evensong.features.user_features import user_dynamics, user_profile, user_sequence
from evensong.types import INTERACTIONS, ITEMS, USERS, Frame

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def at(hours: float) -> datetime:
    return T0 + timedelta(hours=hours)


def table(schema: dict[str, pl.DataType], *rows: dict[str, object]) -> Frame:
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def event(
    user: str, item: str, hour: float, kind: str = "view", late: float = 0, value: float | None = None
) -> dict[str, object]:
    return {
        "user_id": user, "item_id": item, "event_type": kind, "event_timestamp": at(hour),
        "created_timestamp": at(hour + late), "value": value,
    }  # fmt: skip


def item(name: str, path: str, hour: float = -1000) -> dict[str, object]:
    return {"item_id": name, "category_path": path, "event_timestamp": at(hour), "created_timestamp": at(hour)}


def person(name: str, attributes: str | None, hour: float, late: float = 0) -> dict[str, object]:
    return {
        "user_id": name,
        "attributes": attributes,
        "event_timestamp": at(hour),
        "created_timestamp": at(hour + late),
    }


def dynamics(log: Frame, items: Frame, *, half_life_days: float = 7.0, **options: object) -> tuple[Frame, ViewState]:
    return user_dynamics(
        with_category(log, items),
        half_life_days=half_life_days,
        num_top_categories=5,
        **options,  # type: ignore[arg-type]
    )


def sequence(log: Frame, items: Frame, *, length: int = 50, **options: object) -> tuple[Frame, ViewState]:
    return user_sequence(with_category(log, items), sequence_length=length, **options)  # type: ignore[arg-type]


SHOP = table(ITEMS, item("tea", "food > drinks"), item("jam", "food > sweets"), item("hat", "clothes"))


def test_a_profile_has_a_row_a_change_and_none_for_a_row_that_says_the_same() -> None:
    users = table(
        USERS,
        person("ann", '{"age": 24, "gender": "f"}', 0),
        person("ann", '{"age": 24, "gender": "f"}', 2),
        person("ann", '{"age": 24, "gender": "f", "shoe": 38}', 5),
        person("ann", '{"age": 25, "gender": "f", "membership_level": "gold"}', 9),
        person("bob", None, 3),
    )
    found = user_profile(users, until=at(100))
    assert found.select("user_id", "age_bucket", "gender", "membership_level").rows() == [
        ("ann", "18 to 25", "f", None),
        ("ann", "18 to 25", "f", None),
        ("ann", "25 to 35", "f", "gold"),
        ("bob", None, None, None),
    ]
    assert found["user_attributes"][1] == '{"age": 24, "gender": "f", "shoe": 38}'
    assert found["event_timestamp"].to_list() == [at(0), at(5), at(9), at(3)]
    assert_frame_equal(user_profile(users, since=at(5), until=at(100)), found[[2]])


def test_ages_that_are_groups_already_are_buckets_of_their_own() -> None:
    said = ['{"age": "25-34"}', '{"age": "45+"}', '{"age": ""}', '{"age": "30"}', '{"age": "nan"}']
    users = table(USERS, *(person(f"u{n}", text, n) for n, text in enumerate(said)))
    assert user_profile(users, until=at(100))["age_bucket"].to_list() == ["25-34", "45+", None, "25 to 35", None]


def test_a_profile_that_arrives_late_counts_from_then_and_never_displaces_a_newer_one() -> None:
    users = table(
        USERS,
        person("ann", '{"gender": "new"}', 5),
        person("ann", '{"gender": "old"}', 1, late=20),
        person("bob", '{"gender": "m"}', 1, late=20),
    )
    found = user_profile(users, until=at(100))
    assert found.select("user_id", "gender").rows() == [("ann", "new"), ("bob", "m")]
    assert found["created_timestamp"].to_list() == [at(5), at(21)]
    assert user_profile(users, until=at(20))["user_id"].to_list() == ["ann"]


def test_an_age_that_is_no_number_stops_no_night(caplog: pytest.LogCaptureFixture) -> None:
    ages = ['"25-34"', '"55+"', '" 41 "', "17.5", '"unknown"', '"{}"', "[30]", "null", "true", '"NaN"', '"1e400"']
    users = table(USERS, *(person(f"u{n:02}", f'{{"age": {age}}}', 0) for n, age in enumerate(ages)))
    broken = table(USERS, person("v0", "no JSON at all", 0), person("v1", '{"age": 3', 0))
    found = user_profile(pl.concat([users, broken]), until=at(1))
    said = ["25-34", "55+", "35 to 50", "under 18", None, None, None, None, None, None, None, None, None]
    assert found["age_bucket"].to_list() == said
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("column age_bucket: 8 of 13 values in attributes.age are no numbers, such as '25-34'")


def test_any_categorical_column_of_the_users_own_data_may_be_named() -> None:
    columns = ColumnSet((CategoricalColumn(name="town", source="attributes.home.town"),))
    users = table(USERS, person("ann", '{"home": {"town": "Ulm"}}', 0))
    assert user_profile(users, columns=columns, until=at(1))["town"].to_list() == ["Ulm"]
    wrong = ColumnSet((CategoricalColumn(name="town", source="attribute.town"),))
    with pytest.raises(SourceError, match="did you mean attributes"):
        user_profile(users, columns=wrong, until=at(1))


def test_what_a_user_did_lately() -> None:
    log = table(
        INTERACTIONS,
        event("ann", "tea", 10),
        event("ann", "jam", 10, "purchase", value=3.5),
        event("ann", "hat", 34, "cart"),
    )
    rows, _ = dynamics(log, SHOP, half_life_days=1, until=at(34))
    assert rows["event_timestamp"].to_list() == [at(10), at(24), at(34)]
    now = rows.row(2, named=True)
    assert now["decayed_events"] == pytest.approx(1 + 2 / 2, abs=1e-8)
    assert now["decayed_purchases"] == pytest.approx(0.5, abs=1e-8)
    assert (now["spend_1d"], now["spend_7d"], rows["spend_1d"][0]) == (0, 3.5, 3.5)
    assert now["taste_categories"] == ["clothes", "food"]
    assert now["taste_shares"] == pytest.approx([0.5, 0.5])
    assert now["hour_shares"][10] == pytest.approx(1)
    assert sum(now["hour_shares"]) == pytest.approx(1)


def test_hours_of_the_day_are_shared_by_what_is_left_of_their_events() -> None:
    log = table(INTERACTIONS, event("ann", "tea", 3), event("ann", "jam", 20), event("ann", "jam", 20.5))
    rows, _ = dynamics(log, SHOP, half_life_days=1, until=at(20.5))
    shares = rows["hour_shares"].to_list()
    assert [len(row) for row in shares] == [24, 24, 24]
    # hours keep four half-lives of a day: 17 hours leave 2 ** -(17 / 96)
    left = 2 ** -(17 / 96)
    assert (shares[1][3], shares[1][20]) == pytest.approx((left / (left + 1), 1 / (left + 1)), abs=1e-6)
    left, half = 2 ** -(17.5 / 96), 2 ** -(0.5 / 96)
    assert shares[2][20] == pytest.approx((half + 1) / (left + half + 1), abs=1e-6)


def test_each_type_of_event_decays_by_itself() -> None:
    log = table(
        INTERACTIONS, event("ann", "tea", 0), event("ann", "tea", 12, "cart"), event("ann", "jam", 24, "purchase")
    )
    rows, _ = dynamics(log, SHOP, half_life_days=1, until=at(24))
    now = rows.row(-1, named=True)
    assert now["decayed_views"] == pytest.approx(0.5, abs=1e-8)
    assert now["decayed_carts"] == pytest.approx(2**-0.5, abs=1e-8)
    assert (now["decayed_purchases"], now["decayed_clicks"]) == (pytest.approx(1, abs=1e-8), 0)
    assert now["decayed_events"] == pytest.approx(1.5 + 2**-0.5, abs=1e-8)


def test_an_event_takes_the_category_that_its_item_had_when_it_became_known() -> None:
    moved = pl.concat([SHOP, table(ITEMS, item("hat", "gifts", hour=5))])
    log = table(INTERACTIONS, event("ann", "hat", 1), event("bob", "hat", 9), event("cat", "new", 9))
    rows, _ = dynamics(log, moved, until=at(9))
    assert dict(zip(rows["user_id"], rows["taste_categories"].to_list(), strict=True)) == {
        "ann": ["clothes"], "bob": ["gifts"], "cat": [],
    }  # fmt: skip


def test_the_last_steps_in_order_with_their_gaps() -> None:
    log = table(INTERACTIONS, event("ann", "tea", 1), event("ann", "hat", 3, "cart"), event("ann", "jam", 2, late=5))
    rows, _ = sequence(log, SHOP, length=2, until=at(9))
    assert rows["event_timestamp"].to_list() == [at(1), at(3), at(7)]
    last = rows.row(2, named=True)
    assert last["sequence_item_ids"] == ["hat", "jam"]
    assert last["sequence_event_types"] == ["cart", "view"]
    assert last["sequence_categories"] == ["clothes", "food"]
    assert last["sequence_gap_seconds"] == [7200.0, 0.0]


def test_nothing_happened_gives_no_rows() -> None:
    rows, state = dynamics(table(INTERACTIONS), SHOP, until=at(1))
    assert rows.is_empty()
    assert dynamics(table(INTERACTIONS), SHOP, state=state, until=at(2))[0].is_empty()
    assert sequence(table(INTERACTIONS), SHOP, until=at(1))[0].is_empty()


steps = st.builds(
    event,
    st.sampled_from(["ann", "bob"]),
    st.sampled_from(["tea", "jam", "hat"]),
    st.integers(0, 90),
    st.sampled_from(["view", "purchase"]),
    st.integers(0, 30),
    st.sampled_from([None, 0.1, 2.5]),
)


@settings(max_examples=15, deadline=None)
@given(log=st.lists(steps, max_size=12), cuts=st.lists(st.integers(0, 130), max_size=3))
def test_night_by_night_gives_the_rows_and_the_state_of_all_at_once(
    log: list[dict[str, object]], cuts: list[int]
) -> None:
    events = table(INTERACTIONS, *log).unique(["user_id", "item_id", "event_type", "event_timestamp"])
    for function in (dynamics, sequence):
        whole, end = function(events, SHOP, until=at(150))
        parts, state, before = [], None, T0 - timedelta(days=1)
        for cut in [*sorted(cuts), 150]:
            known = pl.max_horizontal("event_timestamp", "created_timestamp")
            batch = events.filter((known > before) & (known <= at(cut)))  # each event comes once
            rows, state = function(batch, SHOP, state=state, until=at(cut))
            parts.append(rows)
            before = at(cut)
        by_time = ["user_id", "event_timestamp"]
        assert_frame_equal(pl.concat(parts).sort(by_time), whole.sort(by_time), check_exact=True)
        assert state is not None
        for part, rows in end.parts.items():
            assert_frame_equal(state.parts[part].sort(pl.all()), rows.sort(pl.all()), check_exact=True)
