"""The real data sets, where they lie beside the checkout: known counts, every bad row with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from evensong.data import quarantine
from evensong.data.lake import Lake
from evensong.data.mapping import EventMapping
from evensong.pipelines import imports, ingest, validate
from evensong.settings import Settings
from evensong.types import Night


def judged(settings: Settings, as_of: str) -> dict[str, Any]:
    uri = validate.run(settings, Night.model_validate({"as_of": as_of}))
    found: dict[str, Any] = json.loads(Path(uri).read_text())["tables"]
    return found


def test_ml_100k_arrives_whole_over_three_nights(shared_data: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert imports.movielens(settings, str(shared_data / "ml-100k")) == {
        "interactions": 100_000, "items": 1682, "users": 943,
    }  # fmt: skip
    accepted = [judged(settings, day)["interactions"]["accepted"] for day in ("1998-04-21", "1998-04-22", "1998-04-23")]
    assert accepted == [99_344, 120, 536]
    lake = Lake(settings.lake)
    assert lake.read("interactions").height == 100_000
    assert lake.read("quarantine").is_empty()
    assert lake.current_items()["category_path"].str.starts_with("unknown").sum() == 2


def test_online_retail_is_cleaned_and_nothing_is_lost(shared_data: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    added = imports.online_retail(settings, str(shared_data / "online-retail" / "online_retail.parquet"))
    assert added["interactions"] == 541_909
    nights = [judged(settings, day)["interactions"] for day in ("2011-12-08", "2011-12-09", "2011-12-10")]
    assert all(night["share"] < 0.06 for night in nights), "guests aside, the shop is clean enough for every night"
    lake = Lake(settings.lake)
    clean, held = lake.read("interactions"), lake.read("quarantine").filter(pl.col("table") == "interactions")
    assert clean.height + held.height == 541_909
    assert held.filter(pl.col("reason").str.contains("user_id is missing")).height == 135_080
    assert clean["user_id"].n_unique() > 4300
    products = lake.current_items()["item_id"]
    assert products.is_in(["postage", "manual", "bank-charges", "amazon-fee", "discount"]).sum() == 0
    assert set(clean["item_id"]) <= set(products)
    assert clean.filter(pl.col("event_type") == "return")["value"].max() <= 0
    assert clean["value"].abs().max() <= 100_000
    reasons = quarantine.summary(lake)["interactions"]
    assert reasons["duplicate of an earlier row"] > 5_000
    assert reasons["value is not between -100000 and 100000"] == 2


@pytest.mark.slow
def test_ml_1m_through_import_events_is_incremental_and_keeps_its_rows(shared_data: Path, tmp_path: Path) -> None:
    whole = shared_data / "ml-1m" / "interactions.parquet"
    settings = Settings(home=tmp_path / "home")
    part = tmp_path / "interactions.parquet"
    pl.scan_parquet(whole).head(400_000).sink_parquet(part)
    mapping = EventMapping(user="user_id", item="movie_id", time="timestamp", value="rating", event_type="rating")
    assert imports.events(settings, str(part), mapping)["interactions"] == 400_000
    pl.scan_parquet(whole).sink_parquet(part)
    assert ingest.run(settings, Night.model_validate({"as_of": "2003-03-01"}))["interactions"] == 599_611
    lake = Lake(settings.lake)
    assert lake.read("raw_interactions").height == 999_611
    items = lake.read("raw_items")
    assert items["item_id"].n_unique() == 3416
    first = lake.read("raw_interactions").group_by("item_id").agg(pl.col("event_timestamp").min())
    assert (
        items.group_by("item_id").agg(pl.col("event_timestamp").min()).sort("item_id").equals(first.sort("item_id"))
    ), "an item is known from its first event on, in whatever order they arrived"
    assert judged(settings, "2003-03-01")["interactions"]["accepted"] == 999_611
