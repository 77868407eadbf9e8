"""Statistics that people declare: what they count, however the events are cut; joined and served like others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from evensong.data.lake import Lake
from evensong.errors import ConfigurationError, SourceError
from evensong.features.columns import ColumnsFile, StatisticDeclaration, parse
from evensong.features.dictionary import build_dictionary, diff
from evensong.features.materialize import materialize
from evensong.features.model_columns import ModelColumns, user_sources
from evensong.features.offline import FeatureReader
from evensong.features.online import OnlineFeatures
from evensong.features.own_statistics import events_with_amounts, item_statistics, user_statistics
from evensong.features.refresh import refresh
from evensong.features.shop_columns import declared
from evensong.features.store import RECOMMENDER, close_store
from evensong.features.views import declared_views
from evensong.settings import FeatureSettings, Settings
from evensong.types import INTERACTIONS, ITEMS, TIMESTAMP, USERS, Frame

T0 = datetime(2026, 1, 1, tzinfo=UTC)
TYPES = ("view", "purchase")


def at(hours: float) -> datetime:
    return T0 + timedelta(hours=hours)


def table(schema: dict[str, pl.DataType], *rows: dict[str, object]) -> Frame:
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def event(user: str, item: str, hour: float, kind: str = "view", value: float | None = None, late: float = 0) -> Any:
    stamps = {"event_timestamp": at(hour), "created_timestamp": at(hour + late)}
    return {"user_id": user, "item_id": item, "event_type": kind, "value": value, **stamps}


def thing(name: str, price: float | None, hour: float = -99, attributes: str | None = None) -> Any:
    stamps = {"event_timestamp": at(hour), "created_timestamp": at(hour)}
    return {"item_id": name, "price": price, "attributes": attributes, "category_path": "x", **stamps}


def person(name: str, attributes: str, hour: float = -99) -> Any:
    return {"user_id": name, "attributes": attributes, "event_timestamp": at(hour), "created_timestamp": at(hour)}


def statistics(*declarations: dict[str, object]) -> tuple[StatisticDeclaration, ...]:
    return parse(ColumnsFile, {"statistics": list(declarations)}, "here").statistics


def computed(
    declarations: tuple[StatisticDeclaration, ...],
    log: Frame,
    items: Frame | None = None,
    users: Frame | None = None,
    until: datetime | None = None,
) -> Frame:
    items, users = table(ITEMS) if items is None else items, table(USERS) if users is None else users
    events = events_with_amounts(log, items, users, TYPES, {}, declarations)
    function = user_statistics if declarations[0].entity == "user" else item_statistics
    rows, _ = function(events, until=until or at(1000), statistics=declarations)
    return rows


SPEND = {"name": "spend", "entity": "user", "kind": "window", "window_days": 1, "column": "value"}


def test_a_window_sums_the_values_of_the_events_that_are_named() -> None:
    log = table(
        INTERACTIONS,
        event("ann", "a", 10, "purchase", 3.5),
        event("ann", "b", 20, "purchase", 2.5),
        event("ann", "c", 21, "view", 99),
    )
    rows = computed(statistics(SPEND | {"event_types": ["purchase"]}), log)
    # at each purchase, and at the midnights that end the days on which one left the window
    assert rows.select("event_timestamp", "spend").rows() == [(at(10), 3.5), (at(20), 6.0), (at(48), 0.0)]


def test_without_types_the_positive_events_count_and_named_ones_need_not_be_positive() -> None:
    log = table(
        INTERACTIONS, event("ann", "a", 1), event("ann", "b", 2, "dwell", 40), event("ann", "c", 3, "dwell", 20)
    )
    declarations = statistics(
        {"name": "wants", "entity": "user", "kind": "window", "window_days": 7},
        {**SPEND, "name": "stay", "window_days": 7, "event_types": ["dwell"], "function": "mean"},
    )
    rows = computed(declarations, log, until=at(5))
    assert rows.select("wants", "stay").rows() == [(1.0, None), (1.0, 40.0), (1.0, 30.0)]


def test_a_decayed_mean_weighs_prices_as_they_were_known() -> None:
    log = table(INTERACTIONS, event("ann", "a", 0), event("ann", "b", 24), event("ann", "free", 24.5))
    items = table(ITEMS, thing("a", 10), thing("b", 40), thing("a", 1000, hour=12), thing("free", None))
    declaration = {"name": "dear", "entity": "user", "kind": "decay", "half_life_days": 1, "column": "item.price"}
    rows = computed(statistics(declaration | {"function": "mean"}), log, items, until=at(24.1))
    assert rows["dear"].to_list() == [10.0, pytest.approx((10 / 2 + 40) / 1.5, abs=1e-6)]
    counted = computed(statistics(declaration | {"function": "count"}), log, items, until=at(24.6))
    assert counted["dear"].to_list()[1] == pytest.approx(1.5, abs=1e-6), "an item without a price is not counted"


def test_an_items_statistic_stands_at_midnight_and_may_tell_who_wants_it() -> None:
    log = table(INTERACTIONS, event("ann", "a", 3), event("bob", "a", 5), event("cat", "a", 6), event("bob", "a", 30))
    users = table(USERS, person("ann", '{"age": 20}'), person("bob", '{"age": "40"}'), person("cat", "{}"))
    declaration = {"name": "age_of_buyers", "entity": "item", "kind": "window", "window_days": 1}
    rows = computed(
        statistics(declaration | {"column": "user.attributes.age", "function": "mean"}), log, users=users, until=at(72)
    )
    assert rows.select("event_timestamp", "age_of_buyers").rows() == [(at(24), 30.0), (at(48), 40.0), (at(72), None)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"column": "price"}, "price is no column of events; did you mean item.price"),
        ({"column": None, "function": "mean"}, "a mean needs a column, such as value or item.price"),
        ({"window_days": -1}, "greater than 0"),
        ({"kind": "decay"}, "half_life_days: Field required"),
        ({"windw_days": 3}, "unknown key"),
        ({"name": "Spend 1"}, "without blanks, a lower-case letter first, got 'Spend 1'"),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        statistics(SPEND | wrong)


def test_two_of_one_name_and_the_name_of_a_feature_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="found twice: spend"):
        statistics(SPEND, SPEND)
    path = tmp_path / "columns.yaml"
    path.write_text("statistics: [{name: spend_7d, entity: user, kind: window, window_days: 7, column: value}]")
    with pytest.raises(ConfigurationError, match="spend_7d is a feature of user_dynamics already"):
        declared_views(FeatureSettings(columns_path=path))


def test_a_value_that_is_no_number_is_missing_and_the_log_counts_them(caplog: pytest.LogCaptureFixture) -> None:
    log = table(INTERACTIONS, event("ann", "a", 1), event("ann", "b", 1), event("ann", "c", 1), event("ann", "d", 1))
    heavy = {"name": "heavy", "entity": "user", "kind": "window", "window_days": 7, "column": "item.attributes.weight"}
    items = table(
        ITEMS,
        thing("a", 1, attributes='{"weight": "n/a"}'),
        thing("b", 1, attributes='{"weight": "2"}'),
        thing("c", 1, attributes='{"weight": 3}'),
        thing("d", 1, attributes='{"weight": "?"}'),
    )
    assert computed(statistics(heavy), log, items)["heavy"].to_list() == [5.0, 0.0]
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert "item.attributes.weight: 2 of 4 values in attributes.weight are no numbers, such as 'n/a'" in said[0]


def test_numbers_of_several_units_are_told(caplog: pytest.LogCaptureFixture) -> None:
    log = table(INTERACTIONS, event("ann", "a", 1), event("ann", "b", 1))
    heavy = {"name": "heavy", "entity": "user", "kind": "window", "window_days": 7, "column": "item.attributes.weight"}
    items = table(
        ITEMS, thing("a", 1, attributes='{"weight": "2 kg"}'), thing("b", 1, attributes='{"weight": "500 g"}')
    )
    assert computed(statistics(heavy), log, items)["heavy"].to_list() == [502.0, 0.0]
    assert "the numbers in attributes.weight are of g, kg, and count as if they were of one kind" in caplog.text


def test_a_column_without_any_number_or_that_is_nowhere_is_refused_with_its_place() -> None:
    log = table(INTERACTIONS, event("ann", "a", 1))
    heavy = {"name": "heavy", "entity": "user", "kind": "window", "window_days": 7, "column": "item.attributes.weight"}
    items = table(ITEMS, thing("a", 1, attributes='{"weight": "heavy"}'))
    with pytest.raises(SourceError, match=r"item\.attributes\.weight: expected numbers in attributes\.weight.*'heavy'"):
        computed(statistics(heavy), log, items)
    with pytest.raises(SourceError, match="no row of attributes has weight; did you mean wieght"):
        computed(statistics(heavy), log, table(ITEMS, thing("a", 1, attributes='{"wieght": 12}')))


steps = st.builds(
    event,
    st.sampled_from(["ann", "bob"]),
    st.sampled_from(["a", "b"]),
    st.integers(0, 90),
    st.sampled_from(["view", "purchase", "dwell"]),
    st.sampled_from([None, 0.1, 2.5]),
    st.integers(0, 30),
)


@hypothesis_settings(max_examples=15, deadline=None)
@given(log=st.lists(steps, max_size=10), cuts=st.lists(st.integers(0, 130), max_size=3))
def test_however_many_updates_give_the_rows_and_the_state_of_one(log: list[Any], cuts: list[int]) -> None:
    items = table(ITEMS, thing("a", 3), thing("b", None), thing("b", 8, hour=20))
    for entity, function in (("user", user_statistics), ("item", item_statistics)):
        mine = statistics(
            {"name": "sum_1", "entity": entity, "kind": "window", "window_days": 1, "column": "value"},
            {"name": "mean_3", "entity": entity, "kind": "decay", "half_life_days": 3, "column": "item.price"}
            | {"function": "mean"},
        )
        events = events_with_amounts(table(INTERACTIONS, *log), items, table(USERS), TYPES, {}, mine)
        whole, end = function(events, until=at(150), statistics=mine)
        parts, state, before = [], None, at(-1)
        for cut in [*sorted(cuts), 150]:
            known = pl.max_horizontal("event_timestamp", "created_timestamp")
            batch = events.filter((known > before) & (known <= at(cut)))
            rows, state = function(batch, state=state, until=at(cut), statistics=mine)
            parts.append(rows)
            before = at(cut)
        keys = [f"{entity}_id", "event_timestamp"]
        assert_frame_equal(pl.concat(parts).sort(keys), whole.sort(keys), check_exact=True)
        assert state is not None
        for part, rows in end.parts.items():
            assert_frame_equal(state.parts[part].sort(pl.all()), rows.sort(pl.all()), check_exact=True)


FILE = """
users:
  - {kind: numeric, name: dear, normalise: none, missing: 0.0}
items:
  - {kind: numeric, name: stays, source: stay_3d, normalise: log}
statistics:
  - {name: dear, entity: user, kind: decay, half_life_days: 5, column: item.price, function: mean}
  - {name: bought_14d, entity: user, kind: window, window_days: 14, event_types: [purchase]}
  - {name: stay_3d, entity: item, kind: window, window_days: 3, column: value, event_types: [dwell]}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Settings:
    path = tmp_path / "columns.yaml"
    path.write_text(FILE)
    settings = Settings(home=tmp_path / "home", features=FeatureSettings(groups=(), columns_path=path))
    lake = Lake(settings.lake)
    lake.append_new("items", table(ITEMS, thing("a", 10), thing("b", 30)))
    lake.append_new("users", table(USERS, person("ann", "{}"), person("bob", "{}")))
    log = [
        event("ann", "a", 5),
        event("ann", "b", 29),
        event("ann", "b", 30, "dwell", 7),
        event("bob", "b", 40, "purchase"),
    ]
    lake.append_new("interactions", table(INTERACTIONS, *log))
    return settings


def test_they_are_joined_and_served_by_one_value_and_read_by_columns(shop: Settings) -> None:
    refresh(shop, at(48))
    materialize(shop, at(48))
    online = OnlineFeatures(shop)
    users, items = online.users(["ann", "bob", "who"]), online.items(["a", "b"])
    assert users["bought_14d"].to_list() == [0.0, 1.0, None]
    assert items["stay_3d"].to_list() == [None, 7.0]
    reader = FeatureReader(shop)
    moment = pl.lit(at(48), TIMESTAMP).alias("event_timestamp")
    for frame, key in ((users, "user_id"), (items, "item_id")):
        assert reader.join(frame.select(key, moment), RECOMMENDER, of=key).select(frame.columns).equals(frame)
    wanted = declared(shop.features)
    assert user_sources(wanted) == ["dear"]
    assert [column.name for column in wanted.moving.root] == ["stays"], "an item's events move: for the ranker alone"
    columns = ModelColumns.fit(wanted, users, items)
    weights = np.array([10 * 2 ** (-1 / 5) + 30, 30]) / np.array([2 ** (-1 / 5) + 1, 1])
    assert columns.user_arrays(users).value_NF[:, 0] == pytest.approx([*weights, 0.0], abs=1e-4)
    close_store(shop)


def test_the_dictionary_knows_each_by_its_own_version(shop: Settings) -> None:
    before = build_dictionary(shop)
    entry = before.show("user_statistics.dear")
    assert (entry.type, entry.owner, entry.window, entry.services) == (
        "Float64",
        "you",
        "half-life 5 days",
        ("recommender_v1",),
    )
    assert entry.description == "Mean of item.price over positive events."
    assert entry.source == "interactions, items, users"
    assert shop.features.columns_path is not None
    shop.features.columns_path.write_text(FILE.replace("window_days: 14", "window_days: 15"))
    changed = {change.name for change in diff(before, build_dictionary(shop)).changed}
    assert changed == {"user_statistics.bought_14d"}


def test_another_declaration_computes_its_view_anew_and_no_other(shop: Settings) -> None:
    before = refresh(shop, at(48))
    assert shop.features.columns_path is not None
    shop.features.columns_path.write_text(FILE.replace("window_days: 14", "window_days: 0.5"))
    after = refresh(shop, at(48))
    assert {view for view in after if after[view] != before[view]} == {"user_statistics"}
    rows = Lake(shop.lake).read("features/user_statistics").filter(pl.col("user_id") == "bob")
    assert rows["bought_14d"].to_list() == [1.0]
    shop.features.columns_path.write_text("{}")
    assert "user_statistics" not in refresh(shop, at(48))


def test_a_misspelt_event_type_meets_the_nearest_one(shop: Settings) -> None:
    assert shop.features.columns_path is not None
    shop.features.columns_path.write_text(FILE.replace("[purchase]", "[purchas]"))
    with pytest.raises(
        ConfigurationError, match=r"bought_14d: events of type purchas are not let through .*; did you mean purchase"
    ):
        refresh(shop, at(48))
