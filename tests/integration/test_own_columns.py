"""A shop nobody has seen, of three CSV files and one file of columns: its columns reach the model without any code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from evensong.data import storage
from evensong.features.offline import FeatureReader
from evensong.features.online import OnlineFeatures
from evensong.features.store import RECOMMENDER
from evensong.models.inputs import encode_items, encode_users
from evensong.models.saved import TowerWeights, load_ranker, load_towers
from evensong.recommender.funnel import Recommender
from evensong.settings import Settings, load_settings
from evensong.types import TIMESTAMP, Frame

pytestmark = pytest.mark.slow

START = datetime(2026, 3, 1, tzinfo=UTC)
DAYS = 15
AS_OF = START + timedelta(days=DAYS)
KINDS = ("scarf", "knife", "lamp")

COLUMNS = """
users:
  - {kind: categorical, name: age_bucket, source: attributes.years, bins: [18, 25, 35, 50]}
  - {kind: categorical, name: town, source: attributes.town, min_count: 3}
  - {kind: cross, name: age_x_town, columns: [age_bucket, town], num_buckets: 32}
  - {kind: numeric, name: income, source: attributes.income, decimal: ",", normalise: log}
  - {kind: numeric, name: since, source: attributes.since, date_format: "%d.%m.%Y"}
  - {kind: sequence, name: likes, source: attributes.likes, separator: ";", length: 3}
  - {kind: numeric, name: spends, source: paid_5d, normalise: log}
items:
  - {kind: numeric, name: price, normalise: log, missing: median}
  - {kind: categorical, name: brand, source: attributes.brand}
  - {kind: text, name: name_words, source: title, dimension: 6}
  - {kind: numeric, name: buyers_age, source: buyers_age}
crosses:
  - {name: age_x_shelf, columns: [users.age_bucket, items.category_1], num_buckets: 200}
statistics:
  - {name: paid_5d, entity: user, kind: window, window_days: 5, column: value, event_types: [purchase]}
  - {name: dear, entity: user, kind: decay, half_life_days: 4, column: item.price, function: mean}
  - {name: buyers_age, entity: item, kind: window, window_days: 30, column: user.attributes.years, function: mean}
"""
CONFIG = """
features: {columns_path: columns.yaml, groups: [dynamics, price, conversion]}
split: {holdout_days: 2.0}
retriever: {dimension: 16, epochs: 6, batch_size: 64, learning_rate: 0.01, num_candidates: 20}
ranker: {hidden: [8], num_negatives: 8, epochs: 3}
"""
MAPPING = (
    *("--user", "customer", "--item", "sku", "--time", "at", "--event-type", "what", "--value", "paid"),
    *("--items", "products.csv", "--items-id", "code", "--title", "name", "--category", "shelf", "--price", "cost"),
    *("--item-attributes", "brand", "--users", "customers.csv", "--users-id", "number"),
    *("--user-attributes", "years", "--user-attributes", "town", "--user-attributes", "income"),
    *("--user-attributes", "since", "--user-attributes", "likes"),
)


def write_shop(folder: Path) -> None:
    """The young want scarves, the old knives, and those whose age nobody knows lamps."""
    draw = np.random.default_rng(5)
    products = [
        {
            "code": f"p{n:02d}",
            "name": f"{draw.choice(['red', 'blue', 'old'])} {KINDS[n % 3]} {n}",
            "shelf": KINDS[n % 3],
            "cost": "" if n == 7 else round(float(draw.lognormal(3, 1)), 2),
            "brand": f"brand {n % 4}",
        }
        for n in range(45)
    ]
    customers = [
        {
            "number": f"c{n:02d}",
            "years": {0: str(16 + n % 8), 1: str(55 + n % 9), 2: ""}[n % 3],
            "town": f"town {n % 2}",
            "income": f"€ {1 + n % 3}.{n:02d}0,50" if n % 5 else "",
            "since": f"{1 + n % 28:02d}.03.202{n % 5}",
            "likes": ["Täler; berge", "berge", ""][n % 3],
        }
        for n in range(60)
    ]
    clicks = []
    for n, customer in enumerate(customers):
        wanted = draw.permutation(np.arange(n % 3, 45, 3))[: DAYS - 1]
        for day, item in enumerate(sorted(wanted, key=lambda _: draw.random())):
            moment = START + timedelta(days=day + 1, seconds=int(draw.integers(0, 86_000)))
            kind = "purchase" if draw.random() < 0.3 else "click"
            paid = products[item]["cost"] if kind == "purchase" else ""
            row = {"customer": customer["number"], "sku": f"p{item:02d}", "at": moment.isoformat(), "what": kind}
            clicks.append(row | {"paid": paid})
    for name, rows in (("products", products), ("customers", customers), ("clicks", clicks)):
        pl.DataFrame([{key: str(value) for key, value in row.items()} for row in rows]).write_csv(
            folder / f"{name}.csv"
        )
    (folder / "columns.yaml").write_text(COLUMNS)
    (folder / "evensong.yaml").write_text(CONFIG)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Path, dict[str, Any]]:
    """The settings, the folder, and what the night said."""
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    evensong(folder, "import", "events", "clicks.csv", *MAPPING, "--json")
    said = evensong(folder, "nightly", "--as-of", AS_OF.date().isoformat(), "--json")
    features = {"columns_path": folder / "columns.yaml", "groups": ("dynamics", "price", "conversion")}
    return load_settings(home=folder / "state", features=features, split={"holdout_days": 2.0}), folder, said


def evensong(folder: Path, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "evensong.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"EVENSONG_HOME": str(folder / "state"), "MPLBACKEND": "Agg"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def towers_of(shop: tuple[Settings, Path, dict[str, Any]]) -> TowerWeights:
    settings, _, _ = shop
    return load_towers(Path(settings.run_uri(f"{AS_OF:%Y-%m-%dT%H%M%S}", "bundle", "retriever")))


def served(shop: tuple[Settings, Path, dict[str, Any]]) -> tuple[Frame, Frame]:
    online = OnlineFeatures(shop[0])
    return online.users([f"c{n:02d}" for n in range(60)]), online.items([f"p{n:02d}" for n in range(45)])


def test_the_columns_learnt_what_the_files_hold(shop: tuple[Settings, Path, dict[str, Any]]) -> None:
    columns = towers_of(shop).vocabularies.columns
    assert columns.users.vocabulary("age_bucket") == ["under 18", "18 to 25", "25 to 35", "35 to 50", "50 and over"]
    assert columns.users.vocabulary("town") == ["town 0", "town 1"]
    assert columns.items.vocabulary("brand") == [f"brand {n}" for n in range(4)]
    users, items = served(shop)
    found = columns.users.transform(users.rename({"user_attributes": "attributes"}))
    assert set(found["age_bucket"].tolist()) == {0, 2, 3, 6}
    assert columns.users.vocabulary("likes") == ["Täler", "berge"]
    assert found["income_missing"].tolist() == [float(n % 5 == 0) for n in range(60)]
    assert np.unique(found["since"]).size > 20
    ranked = columns.item_numbers(items)
    missing = columns.item_number_names.index("price_missing")
    assert ranked[:, missing].tolist() == [float(n == 7) for n in range(45)]


def test_a_users_age_moves_the_users_vector(shop: tuple[Settings, Path, dict[str, Any]]) -> None:
    weights = towers_of(shop)
    users, _ = served(shop)
    older = users.with_columns(user_attributes=pl.lit('{"years": "57", "town": "town 0"}'))

    def vectors(frame: Frame) -> np.ndarray:
        return weights.forward().users(encode_users(frame, weights.vocabularies, AS_OF))

    young = np.arange(60) % 3 == 0
    moved = np.abs(vectors(older) - vectors(users)).max(axis=1)
    assert (moved[young] > 1e-4).all()


def test_price_brand_and_words_move_a_new_items_vector(shop: tuple[Settings, Path, dict[str, Any]]) -> None:
    weights = towers_of(shop)
    _, items = served(shop)
    new = items.head(1).with_columns(item_id=pl.lit("never seen"))

    def vector(frame: Frame) -> np.ndarray:
        return weights.forward().items(encode_items(frame, weights.vocabularies))[0]

    assert np.isfinite(vector(new)).all()
    for changed in (
        new.with_columns(item_attributes=pl.lit('{"brand": "brand 3"}')),
        new.with_columns(title=pl.lit("blue knife")),
        new.with_columns(price=pl.lit(900.0), price_rank=pl.lit(1.0)),
    ):
        assert np.abs(vector(changed) - vector(new)).max() > 1e-4


def test_the_ranker_reads_prices_conversions_and_dynamics(shop: tuple[Settings, Path, dict[str, Any]]) -> None:
    _, _, said = shop
    ranker = load_ranker(Path(said["run_uri"], "bundle", "ranker"))
    assert {"item:price", "item:price_rank", "item:purchase_rate", "user:spend_7d"} <= set(ranker.config.features)
    place = ranker.config.features.index("item:purchase_rate")
    assert np.abs(ranker.tensors["layers.0.weight"][:, place]).max() > 0
    spread = dict(zip(ranker.config.features, ranker.config.std, strict=True))
    assert spread["item:purchase_rate"] != 1.0


def test_training_and_service_read_the_same_values(shop: tuple[Settings, Path, dict[str, Any]]) -> None:
    settings, _, _ = shop
    users, items = served(shop)
    reader = FeatureReader(settings)
    moment = pl.lit(AS_OF, TIMESTAMP).alias("event_timestamp")
    for frame, key in ((users, "user_id"), (items, "item_id")):
        joined = reader.join(frame.select(key, moment), RECOMMENDER, of=key)
        assert joined.select(frame.columns).equals(frame, null_equal=True)


def test_own_statistics_and_crosses_reach_the_ranker(shop: tuple[Settings, Path, dict[str, Any]]) -> None:
    _, folder, said = shop
    users, items = served(shop)
    clicks = pl.read_csv(folder / "clicks.csv", schema_overrides={"paid": pl.String})
    paid = clicks.filter((pl.col("at") > (AS_OF - timedelta(days=5)).isoformat()) & (pl.col("what") == "purchase"))
    paid = paid.with_columns(pl.col("paid").cast(pl.Float64, strict=False)).group_by("customer").agg(pl.sum("paid"))
    expected = dict(paid.iter_rows())
    for user, value in users.select("user_id", "paid_5d").iter_rows():
        assert value == pytest.approx(expected.get(user, 0.0), abs=1e-5)
    # the young want scarves, the old knives, and nobody knows the age of those who want lamps
    ages = items.with_columns(kind=pl.col("category_path")).group_by("kind").agg(pl.mean("buyers_age"))
    found = dict(ages.iter_rows())
    assert found["scarf"] < 24 < 50 < found["knife"]
    assert found["lamp"] is None
    ranker = load_ranker(Path(said["run_uri"], "bundle", "ranker"))
    assert {"user:spends", "user:likes_length", "item:buyers_age"} <= set(ranker.config.features)
    assert ranker.config.crosses == ("age_x_shelf",)
    assert np.abs(ranker.tensors["pairs.0.weight"]).max() > 0


def test_the_bundle_names_its_features_and_answers(shop: tuple[Settings, Path, dict[str, Any]]) -> None:
    _, _, said = shop
    bundle = Path(said["run_uri"], "bundle")
    manifest = storage.read_json(str(bundle / "manifest.json"))
    own = {"user_statistics.paid_5d", "user_statistics.dear", "item_statistics.buyers_age"}
    assert own | {"user_profile.user_attributes", "item_standing.price_rank"} <= manifest["features"]["versions"].keys()
    assert "user_sequence.sequence_gap_seconds" not in manifest["features"]["versions"]
    assert {"retriever/columns/users/columns.json", "retriever/columns/items/columns.safetensors"} <= set(
        manifest["files"]
    )
    users, items = served(shop)
    recommender = Recommender.load(bundle)
    answer = recommender.recommend(users, recommender.prepare_items(items), now=AS_OF, k=5)
    assert answer.height == 300
    kind = pl.col("item_id").str.slice(1).cast(pl.Int64) % 3 == pl.col("user_id").str.slice(1).cast(pl.Int64) % 3
    assert answer.select(kind.mean()).item() > 0.6
    assert said["metrics"]["challenger"]["recall_at_20"] > 0
