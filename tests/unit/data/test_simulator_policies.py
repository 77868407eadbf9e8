"""The simulated shop's policies: exact propensities, and an order of worth that leaves room for models."""

from datetime import UTC, date, datetime, time, timedelta

import numpy as np
import polars as pl
import pytest

from evensong.data.simulator import (
    Shop,
    ShopConfig,
    Slates,
    category_policy,
    explore,
    oracle_policy,
    popularity_policy,
    random_policy,
    warmup_policy,
    widen,
)

DRAWS = 30_000


@pytest.fixture(scope="module")
def shop():
    shop = Shop(ShopConfig(seed=11))
    policy = warmup_policy(shop)
    shop.logs = [shop.day(shop.today, policy) for _ in range(14)]
    return shop


def noon(shop):
    return datetime.combine(shop.today, time(12), UTC)


def offered(number):
    return [f"i{n:06d}" for n in range(number)]


def counted(policy, user, items, k, at):
    """How often each item stood at each position, and the propensity logged with it: (N, K) both."""
    slates = policy([user] * DRAWS, items, k, at, np.random.default_rng(1))
    place = {item: number for number, item in enumerate(items)}
    item_BK = np.array([[place[item] for item in slate] for slate in slates.item_ids_BK.tolist()])
    share, logged = np.zeros((len(items), k)), np.full((len(items), k), np.nan)
    for position in range(k):
        share[:, position] = np.bincount(item_BK[:, position], minlength=len(items)) / DRAWS
        for item in np.unique(item_BK[:, position]):
            told = np.unique(slates.propensities_BK[item_BK[:, position] == item, position])
            assert len(told) == 1, "one item at one position has one propensity"
            logged[item, position] = told[0]
    return share, logged


def assert_right(share, logged):
    assert not np.isnan(logged).any()
    np.testing.assert_allclose(logged.sum(axis=0), 1)
    np.testing.assert_allclose(share, logged, atol=4.5 * np.sqrt(0.25 / DRAWS))
    spread = np.sqrt(logged * (1 - logged) / DRAWS)
    assert (np.abs(share - logged) <= 4.5 * spread + 1e-12).all()


@pytest.mark.parametrize("number", [30, 7, 4])
def test_exploration_shows_items_as_often_as_its_propensities_say(shop, number):
    policy = explore(popularity_policy(shop), 0.3)
    share, logged = counted(policy, "u000001", offered(number), 4, noon(shop))
    if number == 4:
        assert (np.nan_to_num(logged, nan=0).sum(axis=0) == 1).all()
    elif number == 7:  # only three items are left outside, so the first slot does not explore
        assert logged[:, 0][~np.isnan(logged[:, 0])].tolist() == [1.0]
        assert_right(share[:, 1:], np.where(np.isnan(logged[:, 1:]), 0.0, logged[:, 1:]))
    else:
        chosen = popularity_policy(shop)(["u000001"], offered(30), 4, noon(shop), np.random.default_rng(0)).item_ids_BK[
            0
        ]
        for item in range(30):
            for position in range(4):
                expected = 0.7 if chosen[position] == f"i{item:06d}" else 0.3 / 26
                if f"i{item:06d}" in chosen and chosen[position] != f"i{item:06d}":
                    assert np.isnan(logged[item, position])
                else:
                    assert logged[item, position] == pytest.approx(expected)
        assert_right(share, np.nan_to_num(logged, nan=0.0))


def test_warmup_shows_items_as_often_as_its_propensities_say(shop):
    clicks = pl.concat([log.interactions for log in shop.logs]).filter(pl.col("event_type") == "click")
    busy = clicks["user_id"].value_counts(sort=True)["user_id"][0]
    for user in (busy, "u002100"):
        assert_right(*counted(warmup_policy(shop), user, offered(43), 5, noon(shop)))


def test_widened_policy_shows_items_as_often_as_its_propensities_say(shop):
    policy = widen(popularity_policy(shop), shop, 0.2)
    share, logged = counted(policy, "u000007", offered(43), 5, noon(shop))
    assert_right(share, logged)
    chosen = popularity_policy(shop)(["u000007"], offered(43), 5, noon(shop), np.random.default_rng(0)).item_ids_BK[0]
    assert [f"i{item:06d}" for item in logged.argmax(axis=0)] == chosen.tolist()
    assert ((logged > 0.8).sum(axis=0) == 1).all()


def test_random_shows_items_as_often_as_its_propensities_say(shop):
    assert_right(*counted(random_policy, "u000001", offered(9), 3, noon(shop)))


def test_logged_propensities_weigh_a_day_to_the_number_of_items(shop):
    """The mean of 1 / propensity over slots is the number of items that could have stood there, were all equally likely
    to be drawn at least; weighting any function of the item by it gives the sum over the items."""
    log = shop.logs[-1].interactions.filter(pl.col("event_type") == "impression")
    weight = 1 / log["propensity"].to_numpy()
    even = np.array([int(item[1:]) % 2 == 0 for item in log["item_id"]])
    total = weight.mean()
    assert total == pytest.approx(len(shop.stock(shop.today)), rel=0.03)
    assert (weight * even).mean() == pytest.approx(total / 2, rel=0.05)


def test_explore_refuses_uncertain_policies_and_wrong_shares(shop):
    with pytest.raises(ValueError, match="expected a policy whose slates are certain"):
        explore(random_policy, 0.1)(["u000001"], offered(30), 5, noon(shop), np.random.default_rng(0))
    with pytest.raises(ValueError, match="epsilon from 0 to 1"):
        explore(random_policy, 1.5)
    with pytest.raises(ValueError, match="expected a policy whose slates are certain"):
        widen(random_policy, shop, 0.1)(["u000001"], offered(30), 5, noon(shop), np.random.default_rng(0))
    with pytest.raises(ValueError, match="share from 0 to 1"):
        widen(random_policy, shop, -0.1)


def test_popularity_leaves_out_what_the_user_has_had(shop):
    clicks = pl.concat([log.interactions for log in shop.logs]).filter(
        pl.col("event_type").is_in(["click", "cart", "purchase"])
    )
    counts = clicks["item_id"].value_counts().sort(["count", "item_id"], descending=[True, False])
    items = shop.world.item_ids.tolist()
    ask = (["u000001", "u000002"], items, 20, noon(shop), np.random.default_rng(0))
    plain = popularity_policy(shop, hide_seen=False)(*ask).item_ids_BK
    assert plain[0].tolist() == plain[1].tolist() == counts["item_id"].to_list()[:20]
    busy = clicks["user_id"].value_counts(sort=True)["user_id"][0]
    had = set(clicks.filter(pl.col("user_id") == busy)["item_id"])
    left = popularity_policy(shop)([busy], *ask[1:]).item_ids_BK[0].tolist()
    assert left == [item for item in counts["item_id"] if item not in had][:20]


def test_oracle_beats_taste_beats_popularity_beats_random(shop):
    value = {
        name: shop.true_value(policy, shop.today)
        for name, policy in {
            "random": random_policy,
            "popularity": popularity_policy(shop),
            "taste": category_policy(shop),
            "oracle": oracle_policy(shop),
        }.items()
    }
    assert value["popularity"] > 2 * value["random"]
    assert value["taste"] > 1.4 * value["popularity"]
    assert value["oracle"] > 1.8 * value["taste"]
    assert value["oracle"] > 0.15


def test_true_value_of_lists_is_that_of_the_policy_that_made_them(shop):
    users = shop.world.user_ids.tolist()
    policy = category_policy(shop)
    available = [item for item, pieces in shop.stock(shop.today).items() if pieces]
    slates = policy(users, available, 20, noon(shop), np.random.default_rng(0))
    lists = {user: slate.tolist() for user, slate in zip(users, slates.item_ids_BK, strict=True)}
    # items that arrive during the day are in the lists from the start, so the two differ a little
    assert shop.true_value(lists, shop.today) == pytest.approx(shop.true_value(policy, shop.today), rel=0.01)
    with pytest.raises(ValueError, match="at least one user"):
        shop.true_value({}, shop.today)
    with pytest.raises(ValueError, match="expected a day from"):
        shop.true_value(lists, shop.today + timedelta(days=1))


def test_true_value_of_a_past_day_is_what_its_summary_expected(shop):
    quiet = [log.summary for log in shop.logs if log.summary["sold_out"] == 0][-1]
    again = shop.true_value(popularity_policy(shop), date.fromisoformat(quiet["date"]))
    assert again == pytest.approx(quiet["popularity_click_rate"])


def test_item_neighbours_learn_from_two_weeks_of_clicks(shop):
    """Item-kNN on 14 days' clicks finds more of the next day's new positives than popularity of the same days."""
    logs = [log.interactions for log in shop.logs]
    tomorrow = Shop(shop.config)
    for log in logs:
        tomorrow.replay(tomorrow.today, log)
    held_out = tomorrow.day(tomorrow.today, warmup_policy(tomorrow)).interactions
    shape = (len(tomorrow.world.users), tomorrow.num_items)
    before, after = (_matrix(tomorrow, frame, shape) for frame in (pl.concat(logs), held_out))
    after &= ~before
    num_users_I = before.sum(axis=0).astype(float)
    together_II = before.T.astype(np.float32) @ before.astype(np.float32)
    np.fill_diagonal(together_II, 0)
    neighbours_UI = before @ (together_II / (np.sqrt(np.outer(num_users_I, num_users_I)) + 10))
    neighbours = _recall(neighbours_UI + 1e-9 * num_users_I, before, after)
    popular = _recall(np.tile(num_users_I, (shape[0], 1)), before, after)
    assert neighbours > 1.5 * popular


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda items: [items[0], items[0]], "an item twice"),
        (lambda items: ["i000999", items[0]], "not on offer"),
        (lambda items: items[:1], "expected"),
    ],
)
def test_shop_refuses_a_policys_impossible_slates(answer, message):
    config = ShopConfig(num_users=50, num_items=990, new_items_per_day=20, slate_size=2)

    def policy(user_ids, available, k, at, rng):
        slates = np.array([answer(available)] * len(user_ids), dtype=object)
        return Slates(slates, np.ones(slates.shape))

    with pytest.raises(ValueError, match=message):
        Shop(config).day(config.start, policy)


def _matrix(shop, frame, shape):
    wanted = frame.filter(pl.col("event_type").is_in(["click", "cart", "purchase"]))
    matrix = np.zeros(shape, dtype=bool)
    matrix[shop.user_numbers(wanted["user_id"].to_list()), shop.item_numbers(wanted["item_id"].to_list())] = True
    return matrix


def _recall(scores_UI, before, after):
    users = after.any(axis=1)
    top = np.argsort(-np.where(before, -np.inf, scores_UI)[users], axis=1, kind="stable")[:, :20]
    return (np.take_along_axis(after[users], top, axis=1).sum(axis=1) / after[users].sum(axis=1)).mean()
