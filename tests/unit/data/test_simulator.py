"""The simulated shop's days: what they write, how they go on, and what is true about them."""

import json
from datetime import UTC, date, datetime, time, timedelta

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from evensong.data.simulator import Shop, ShopConfig, random_policy, warmup_policy
from evensong.data.simulator.words import PATHS
from evensong.types import CATEGORY_SEPARATOR, INTERACTIONS, ITEMS, TABLE_KEYS, USERS

SMALL = ShopConfig(seed=3, num_users=400, num_items=250, new_users_per_day=5, new_items_per_day=4)
DAYS = 8


def live(shop, days, policy=None):
    policy = policy or warmup_policy(shop)
    return [shop.day(shop.today, policy) for _ in range(days)]


@pytest.fixture(scope="module")
def lived():
    shop = Shop(SMALL)
    return shop, live(shop, DAYS)


@pytest.fixture(scope="module")
def events(lived):
    return pl.concat([log.interactions for log in lived[1]])


def test_config_refuses_unknown_keys():
    with pytest.raises(ValidationError, match="num_user"):
        ShopConfig(num_user=5)


def test_day_has_the_lakes_columns_and_distinct_keys(lived):
    for log in lived[1]:
        assert log.interactions.schema == pl.Schema(INTERACTIONS)
        assert log.items.schema == pl.Schema(ITEMS)
        assert log.users.schema == pl.Schema(USERS)
        for name, frame in (("interactions", log.interactions), ("items", log.items), ("users", log.users)):
            assert not frame.select(TABLE_KEYS[name]).is_duplicated().any(), name


def test_same_seed_gives_the_same_days(lived):
    again = live(Shop(SMALL), 3)
    for log, other in zip(lived[1], again, strict=False):
        assert_frame_equal(log.interactions, other.interactions)
        assert_frame_equal(log.items, other.items)
        assert_frame_equal(log.users, other.users)
        assert log.summary == other.summary


def test_other_seed_gives_other_days(lived):
    other = live(Shop(SMALL.model_copy(update={"seed": 4})), 1)[0]
    assert not other.interactions.equals(lived[1][0].interactions)
    assert other.items["title"].to_list() != lived[1][0].items["title"].to_list()


def test_replayed_days_lead_to_the_same_next_day(lived):
    shop = Shop(SMALL)
    for log in lived[1][:5]:
        shop.replay(shop.today, log.interactions.sample(fraction=1, shuffle=True, seed=1))
    after = shop.day(shop.today, warmup_policy(shop))
    assert_frame_equal(after.interactions, lived[1][5].interactions)
    assert_frame_equal(after.items, lived[1][5].items)
    assert_frame_equal(after.users, lived[1][5].users)
    assert after.summary == lived[1][5].summary


def test_world_does_not_depend_on_the_policy():
    shop, other = Shop(SMALL), Shop(SMALL)
    day, same_day = live(shop, 2)[1], live(other, 2, random_policy)[1]
    requests = ["user_id", "session_id", "request_id", "event_timestamp"]
    shown = [log.interactions.filter(pl.col("event_type") == "impression") for log in (day, same_day)]
    assert_frame_equal(*[frame.select(requests).unique().sort(requests) for frame in shown])
    assert np.array_equal(shop.world.tastes(9), other.world.tastes(9))


def test_asking_about_later_days_changes_nothing(lived):
    shop = Shop(SMALL)
    shop.world.tastes(30)
    shop.true_click_probability(["u000001"], ["i000001"], datetime(2026, 2, 1, tzinfo=UTC))
    assert_frame_equal(live(shop, 1)[0].interactions, lived[1][0].interactions)


def test_days_are_lived_in_order():
    shop = Shop(SMALL)
    with pytest.raises(ValueError, match="expected 2026-01-05, got 2026-01-06"):
        shop.day(date(2026, 1, 6), random_policy)


def test_events_stay_in_their_day_and_become_known_later(lived, events):
    for number, log in enumerate(lived[1]):
        day = datetime.combine(SMALL.start + timedelta(days=number), time(), UTC)
        assert log.interactions["event_timestamp"].is_between(day, day + timedelta(days=1), closed="left").all()
    delay = events.select(pl.col("event_type"), late=pl.col("created_timestamp") - pl.col("event_timestamp"))
    assert (delay["late"] > timedelta(0)).all()
    assert (delay.filter(pl.col("event_type") == "impression")["late"] < timedelta(minutes=1)).all()
    by_device = delay.filter(pl.col("event_type") != "impression")["late"]
    assert 0.005 < (by_device > timedelta(hours=1)).mean() < 0.05
    assert (by_device < timedelta(hours=13)).all()


def test_every_action_follows_an_impression_of_its_request(events):
    shown = events.filter(pl.col("event_type") == "impression")
    key = ["request_id", "user_id", "item_id", "position", "propensity", "session_id"]
    for kind, before in (("click", "impression"), ("dwell", "click"), ("cart", "click"), ("purchase", "cart")):
        done = events.filter(pl.col("event_type") == kind)
        cause = events.filter(pl.col("event_type") == before).select(*key, earlier="event_timestamp")
        pairs = done.join(cause, on=key)
        assert done.height > 0
        assert pairs.height == done.height, kind
        assert (pairs["event_timestamp"] > pairs["earlier"]).all(), kind
    assert shown.group_by("request_id").len()["len"].unique().to_list() == [SMALL.slate_size]
    positions = shown.group_by("request_id").agg(pl.col("position").sort())["position"]
    assert positions.list.eval(pl.element() == pl.int_range(pl.len())).list.all().all()


def test_values_are_seconds_of_dwell_and_prices_paid(lived, events):
    value = {kind[0]: frame["value"] for kind, frame in events.group_by("event_type")}
    assert all(value[kind].is_null().all() for kind in ("impression", "click", "cart"))
    assert value["dwell"].is_between(1, 600).all()
    prices = pl.concat([log.items for log in lived[1]]).select("item_id", "price").unique()
    paid = events.filter(pl.col("event_type") == "purchase").select("item_id", price="value")
    assert paid.join(prices, on=["item_id", "price"], how="anti").is_empty()


def test_titles_are_made_of_their_categorys_words(lived):
    for title, path in lived[1][0].items.select("title", "category_path").iter_rows():
        department, aisle, shelf = path.split(CATEGORY_SEPARATOR)
        assert f"{aisle} {shelf[:-1]}" in title
        assert department
    assert len(PATHS) == len(set(PATHS)) == 96


def test_attributes_are_json_objects(lived):
    log = lived[1][0]
    users = [json.loads(text) for text in log.users["attributes"]]
    items = [json.loads(text) for text in log.items["attributes"]]
    assert all({"age", "gender", "membership_level"} <= user.keys() for user in users)
    assert all({"stock", "brand"} <= item.keys() for item in items)
    assert {user["membership_level"] for user in users} == {"basic", "silver", "gold"}


def test_new_items_and_users_come_every_day(lived):
    known_items, known_users = set(), set()
    for number, log in enumerate(lived[1]):
        items, users = set(log.items["item_id"]) - known_items, set(log.users["user_id"]) - known_users
        assert len(items) == (254 if number == 0 else 4)
        assert len(users) == (405 if number == 0 else 5)
        known_items |= items
        known_users |= users


def test_nothing_is_shown_before_it_arrives_or_before_its_user_signs_up(lived, events):
    for table, key in (("items", "item_id"), ("users", "user_id")):
        rows = pl.concat([getattr(log, table) for log in lived[1]])
        first = rows.group_by(key).agg(since=pl.col("event_timestamp").min())
        joined = events.join(first, on=key, how="left")
        assert (joined["event_timestamp"] > joined["since"]).all(), table


def test_members_rise_with_their_purchases():
    shop = Shop(SMALL.model_copy(update={"num_users": 60, "sessions_per_user_day": 6.0, "base_logit": -2.0}))
    logs = live(shop, 4)
    level = {}
    for log in logs:
        for user, text in log.users.select("user_id", "attributes").iter_rows():
            new = json.loads(text)["membership_level"]
            assert user not in level or ("basic", "silver", "gold").index(new) > level[user]
            level[user] = ("basic", "silver", "gold").index(new)
    bought = pl.concat([log.interactions for log in logs]).filter(pl.col("event_type") == "purchase")
    often = bought.group_by("user_id").len().filter(pl.col("len") >= 10)["user_id"]
    assert len(often) > 0
    assert all(level[user] == 2 for user in often)


def test_what_is_sold_out_is_not_shown_and_never_sold_twice():
    config = SMALL.model_copy(
        update={"num_items": 60, "new_items_per_day": 0, "mean_stock": 2.0, "restock_chance": 0.0, "base_logit": -2.5}
    )
    shop = Shop(config)
    logs = live(shop, 3)
    events = pl.concat([log.interactions for log in logs])
    stock = pl.DataFrame(list(shop.stock(config.start).items()), schema=["item_id", "stock"], orient="row")
    request_moment = (
        events.filter(pl.col("event_type") == "impression")
        .group_by("request_id")
        .agg(asked=pl.col("event_timestamp").first())
    )
    sales = events.filter(pl.col("event_type") == "purchase").join(request_moment, on="request_id")
    sold = sales.group_by("item_id").agg(num=pl.len(), last=pl.col("asked").max()).join(stock, on="item_id")
    assert (sold["num"] <= sold["stock"]).all()
    gone = sold.filter(pl.col("num") == pl.col("stock"))
    assert gone.height > 5
    assert sum(log.summary["sold_out"] for log in logs) == gone.height
    late = events.filter(pl.col("event_type") == "impression").join(gone, on="item_id")
    assert not (late["event_timestamp"] > late["last"]).any()
    newest = pl.concat([log.items for log in logs]).sort("event_timestamp").unique("item_id", keep="last")
    left = {item: json.loads(text)["stock"] for item, text in newest.select("item_id", "attributes").iter_rows()}
    assert left == shop.stock(shop.today)


def test_click_rate_falls_with_position(events):
    shown = events.filter(pl.col("event_type") == "impression")["position"].value_counts().sort("position")
    clicked = events.filter(pl.col("event_type") == "click")["position"].value_counts().sort("position")
    rate = clicked["count"].to_numpy() / shown["count"].to_numpy()
    assert rate[:4].mean() > 1.5 * rate[10:].mean()


def test_popularity_has_a_long_tail(events):
    wanted = np.sort(events.filter(pl.col("event_type") == "click")["item_id"].value_counts()["count"].to_numpy())[::-1]
    assert wanted[: len(wanted) // 5].sum() > 0.4 * wanted.sum()


def test_visits_follow_the_hours_and_the_weekday(events):
    asked = events.filter(pl.col("event_type") == "impression").unique("request_id")
    hour = asked["event_timestamp"].dt.hour()
    assert ((hour >= 18) & (hour < 22)).mean() > 4 * (hour < 4).mean()
    shop = Shop(ShopConfig(num_users=1000, num_items=50))
    weekday = np.zeros(8)
    for day in range(28):
        weekday[(shop.config.start + timedelta(days=day)).isoweekday()] += len(shop.world.schedule(day))
    assert weekday[6:].mean() > 1.15 * weekday[1:6].mean()


def test_not_every_user_comes_every_day(lived):
    assert all(0.2 < log.summary["users"] / 400 < 0.6 for log in lived[1])


def test_log_agrees_with_the_true_click_probability(lived, events):
    shop, _ = lived
    shown = events.filter(pl.col("event_type") == "impression").with_columns(
        hour=pl.col("event_timestamp").dt.truncate("1h")
    )
    clicks = events.filter(pl.col("event_type") == "click").select("request_id", "item_id", clicked=pl.lit(1))
    shown = shown.join(clicks, on=["request_id", "item_id"], how="left").with_columns(pl.col("clicked").fill_null(0))
    truth, clicked = [], []
    for (at, position), rows in shown.filter(pl.col("position").is_in([0, 9])).group_by("hour", "position"):
        truth.append(shop.true_click_probability(rows["user_id"].to_list(), rows["item_id"].to_list(), at, position))
        clicked.append(rows["clicked"].to_numpy())
    truth, clicked = np.concatenate(truth), np.concatenate(clicked)
    order = np.argsort(truth)
    for part in np.array_split(order, 4):
        error = np.sqrt((truth[part] * (1 - truth[part])).sum())
        assert abs(clicked[part].sum() - truth[part].sum()) < 4 * error


def test_summary_tells_expected_clicks_beside_what_happened(lived):
    for log in lived[1]:
        figures = log.summary
        error = np.sqrt(figures["expected_click_rate"] / figures["impressions"])
        assert abs(figures["click_rate"] - figures["expected_click_rate"]) < 4.5 * error
        assert figures["events"] == log.interactions.height
    assert lived[1][-1].summary["popularity_click_rate"] > lived[1][-1].summary["expected_click_rate"]


def test_tastes_drift():
    shop = Shop(SMALL)
    pairs = [(f"u{u:06d}", f"i{i:06d}") for u in range(40) for i in range(250)]
    users, items = [u for u, _ in pairs], [i for _, i in pairs]
    first, next_day, later = (
        shop.true_click_probability(users, items, datetime.combine(SMALL.start + timedelta(days=d), time(12), UTC))
        for d in (0, 1, 60)
    )
    assert np.corrcoef(first, next_day)[0, 1] > 0.95
    assert np.corrcoef(first, later)[0, 1] < 0.85


def test_users_tire_of_what_they_clicked_and_bought():
    shop = Shop(SMALL)
    log = live(shop, 1)[0].interactions
    bought = log.filter(pl.col("event_type") == "purchase").row(0, named=True)
    pair = [bought["user_id"]], [bought["item_id"]]
    tired = Shop(SMALL)
    tired.replay(tired.today, log)
    fresh = Shop(SMALL)
    fresh.replay(fresh.today, log.clear())
    tomorrow = datetime.combine(SMALL.start + timedelta(days=1), time(1), UTC)
    ratio = tired.true_click_probability(*pair, tomorrow) / fresh.true_click_probability(*pair, tomorrow)
    assert ratio[0] == pytest.approx(SMALL.purchased_satiation)


@pytest.mark.parametrize(
    ("users", "items", "at", "message"),
    [
        (["u000001"], ["i999999"], datetime(2026, 1, 6, tzinfo=UTC), "i999999: no such id"),
        (["nobody"], ["i000001"], datetime(2026, 1, 6, tzinfo=UTC), "nobody: no such id; this shop has"),
        (["u000001"], [], datetime(2026, 1, 6, tzinfo=UTC), "got 1 users and 0 items"),
        (["u000001"], ["i000001"], datetime(2025, 1, 6, tzinfo=UTC), "from 2026-01-05 on"),
    ],
)
def test_truth_refuses_what_it_does_not_know(users, items, at, message):
    with pytest.raises(ValueError, match=message):
        Shop(SMALL).true_click_probability(users, items, at)
