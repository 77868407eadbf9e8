"""Item-kNN recommends what people with the same items wanted, and never what is hidden."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from evensong.models import item_knn
from evensong.models.item_knn import ItemKnn
from evensong.models.popularity import Popularity
from evensong.types import Frame

ITEMS = ["ale", "bread", "cheese", "tea", "wine"]


def wanted(*pairs: str) -> Frame:
    return pl.DataFrame([pair.split() for pair in pairs], schema=["user_id", "item_id"], orient="row")


def popular(*item_ids: str) -> Popularity:
    return Popularity(list(item_ids), [1.0] * len(item_ids))


WORLD = wanted("ann bread", "ann cheese", "bob bread", "bob cheese", "cid bread", "dan tea", "eve tea", "eve ale")


def test_who_shares_an_item_shares_a_taste() -> None:
    model = ItemKnn.fit(WORLD, ITEMS)
    rows = model.lists(["cid", "dan"], 1, {"cid": {"bread"}, "dan": {"tea"}}, popular("wine"))
    assert [(user_id, rank, item_id) for user_id, rank, item_id, _ in rows] == [("cid", 1, "cheese"), ("dan", 1, "ale")]


def test_similarity_is_the_shrunk_cosine() -> None:
    model = ItemKnn.fit(WORLD, ITEMS)
    ((_, _, item_id, score),) = model.lists(["cid"], 1, {"cid": {"bread"}}, popular())
    # three wanted bread, two cheese, two both
    assert (item_id, score) == ("cheese", pytest.approx(2 / (np.sqrt(3 * 2) + item_knn.SHRINKAGE)))


def test_a_stranger_and_a_list_that_runs_out_get_the_popular_items() -> None:
    model = ItemKnn.fit(WORLD, ITEMS)
    rows = model.lists(
        ["nobody", "dan"], 3, {"nobody": {"ale"}, "dan": {"tea"}}, popular("ale", "tea", "wine", "bread")
    )
    lists = {user: [item for owner, _, item, _ in rows if owner == user] for user in ("nobody", "dan")}
    assert lists == {"nobody": ["tea", "wine", "bread"], "dan": ["ale", "wine", "bread"]}


def test_items_that_may_not_be_recommended_are_unknown_to_it() -> None:
    model = ItemKnn.fit(WORLD, ["bread", "tea"])
    rows = model.lists(["cid"], 5, {"cid": {"bread"}}, popular("tea"))
    assert [row[2] for row in rows] == ["tea"]


def test_pieces_of_the_similarity_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, 40, 600), rng.integers(0, 30, 600)
    events = pl.DataFrame({"user_id": [f"u{u:02}" for u in users], "item_id": [f"i{i:02}" for i in items]})
    names = [f"i{i:02}" for i in range(30)]
    asked = [f"u{u:02}" for u in range(40)]
    hidden: dict[str, set[str]] = {user: set() for user in asked}
    fallback = Popularity.fit(
        events.with_columns(event_timestamp=pl.lit(datetime(2026, 1, 1, tzinfo=UTC))),
        names,
        datetime(2026, 1, 2, tzinfo=UTC),
        30,
    )
    whole = ItemKnn.fit(events, names).lists(asked, 5, hidden, fallback)
    monkeypatch.setattr(item_knn, "CHUNK", 7)
    assert ItemKnn.fit(events, names).lists(asked, 5, hidden, fallback) == whole
