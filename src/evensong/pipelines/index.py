"""The step that indexes the items and measures the index against exact search."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evensong.data import storage
from evensong.models.inputs import encode_items, encode_users
from evensong.models.saved import TowerWeights
from evensong.pipelines import train
from evensong.retrieval import exact
from evensong.retrieval.faiss_index import ItemIndex
from evensong.settings import Settings
from evensong.types import Night

log = logging.getLogger(__name__)

#: Queries that the index is judged by.
NUM_QUERIES = 500


def build(settings: Settings, night: Night, training_set_uri: str, retriever_uri: str, final: bool = False) -> str:
    """Index every item known at the cutoff; return the URI of `index/`, whose `index.json` holds `index_recall`."""
    items = train.read_items(training_set_uri, final)
    with tempfile.TemporaryDirectory() as folder:
        towers = train.towers(settings, storage.fetch_folder(retriever_uri, Path(folder, "retriever")))
        vectors_ND = towers.forward().items(encode_items(items, towers.vocabularies))
        index = ItemIndex.build(vectors_ND, items["item_id"].to_list(), settings.index)
        queries_QD = _queries(settings, night, training_set_uri, towers, vectors_ND)
        k = min(settings.retriever.num_candidates, len(items))
        exact_scores, _ = exact.search(queries_QD, vectors_ND, k)
        recall = exact.index_recall(index.search(queries_QD, k)[1], exact_scores, queries_QD, vectors_ND)
        log.info("index: %s of %d items, index_recall@%d %.4f", index.kind, len(items), k, recall)
        index.save(Path(folder, "index"), index_recall=recall, index_recall_k=k, num_queries=len(queries_QD))
        return storage.write_folder(Path(folder, "index"), train.place(settings, night, "index", final))


def _queries(
    settings: Settings, night: Night, training_set_uri: str, towers: TowerWeights, vectors_ND: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Vectors of users who will be asked about; of items where there are no such users."""
    users = storage.read_frame(storage.join(training_set_uri, "users_holdout.parquet")).sort("user_id")
    inputs = encode_users(users, towers.vocabularies, train.cutoff_of(settings, night, final=False))
    known = np.flatnonzero(inputs.has_history_B)
    chosen = known if len(known) else np.arange(len(vectors_ND))
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(NUM_QUERIES, len(chosen))).astype(np.int64)]
    return towers.forward().users(inputs.take(chosen)) if len(known) else vectors_ND[chosen]
