"""A recommender trained on the world of two tastes, as a bundle's folder."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import polars as pl
from tests.taste_world import TasteWorld

from evensong.models.inputs import Vocabularies, encode_items
from evensong.models.popularity import Popularity
from evensong.models.saved import save_ranker, save_towers
from evensong.retrieval.faiss_index import ItemIndex
from evensong.settings import load_settings
from evensong.training import ranker, retriever


def write_bundle(folder: Path, world: TasteWorld, labels: pl.DataFrame | None = None, epochs: int = 12) -> Path:
    """Train on what came before the cutoff, or on other `labels`; everything but the hashes of the manifest is as in a
    night."""
    settings = load_settings(
        retriever={"dimension": 16, "epochs": epochs, "batch_size": 64, "learning_rate": 0.01}
        | {"num_uniform_negatives": 16, "num_candidates": 15, "num_popular_candidates": 5},
        ranker={"hidden": (8,), "num_negatives": 8, "epochs": 4},
    )
    examples = world.examples().filter(pl.col("part") != "holdout") if labels is None else labels
    items = world.catalogue(world.cutoff)
    start = world.cutoff - timedelta(days=3)

    def fit(labels: pl.DataFrame):  # type: ignore[no-untyped-def]
        vocabularies = Vocabularies.fit(items, labels["item_id"], 10, 2)
        data = retriever.prepare(labels, items, vocabularies)
        return retriever.train(data, vocabularies, settings.retriever, seed=1, num_threads=1)

    base, towers = fit(examples.filter(pl.col("event_timestamp") < start)), fit(examples)
    slates = ranker.slates_of(examples, items, base, world.join, start, settings, seed=1)
    save_towers(folder / "retriever", towers)
    save_ranker(folder / "ranker", ranker.train(slates, settings, seed=1)[0])
    vectors = towers.forward().items(encode_items(items, towers.vocabularies))
    ItemIndex.build(vectors, items["item_id"].to_list(), settings.index).save(folder / "index", index_recall=1.0)
    popularity = Popularity.fit(examples, items["item_id"].to_list(), world.cutoff, days=30)
    (folder / "popularity.json").write_text(json.dumps(popularity.to_dict()))
    items.write_parquet(folder / "items.parquet")
    (folder / "manifest.json").write_text(json.dumps({"train_cutoff": world.cutoff.isoformat()}))
    return folder
