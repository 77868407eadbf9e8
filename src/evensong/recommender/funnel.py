"""Owns the funnel: retrieve, filter, rank, one user after the other, the same for evaluation, simulation and service.

Legend: N items of the index, C candidates of one user, D embedding dimension.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.errors import BundleError
from evensong.models import inputs as model_inputs
from evensong.models import rank_features
from evensong.models.inputs import UserInputs
from evensong.models.popularity import Popularity
from evensong.models.rank_features import History, Item
from evensong.models.saved import RankerWeights, TowerWeights, load_ranker, load_towers
from evensong.retrieval.faiss_index import ItemIndex
from evensong.types import Frame

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

SCHEMA = {"user_id": pl.String, "rank": pl.Int64, "item_id": pl.String, "score": pl.Float64, "source": pl.String}
ITEM_FEATURES: dict[str, pl.DataType] = {
    **{name: pl.Int64() for name in rank_features.POPULARITY},
    "title": pl.String(),
    "category_path": pl.String(),
    "price": pl.Float64(),
    "arrival_seconds": pl.Int64(),
}


@dataclass(frozen=True)
class ItemTable:
    """Item features aligned with the index: row i describes `Recommender.item_ids[i]`."""

    columns: Item
    known_N: NDArray[np.bool_]
    """Whether the frame had a row for the item; one without is scored from nulls."""


class Recommender:
    """A trained funnel. Every user is computed alone, so a batch gives exactly the lists of single requests."""

    def __init__(self, towers: TowerWeights, ranker: RankerWeights, index: ItemIndex, popularity: Popularity) -> None:
        self.popularity = popularity
        self._vocabularies = towers.vocabularies
        self._config = ranker.config
        columns = self._vocabularies.columns
        expected = (rank_features.features_of(columns), columns.pairs.names, columns.pairs.sizes)
        if (found := (ranker.config.features, ranker.config.crosses, ranker.config.num_buckets)) != expected:
            raise BundleError(
                f"expected a ranker of the retriever's columns {expected}, got {found}; take both from one bundle"
            )
        self._columns = columns
        self._towers = towers.forward()
        self._ranker = ranker.forward()
        self._index = index
        self._vectors_ND = index.vectors()
        self._row_of = {item_id: row for row, item_id in enumerate(index.item_ids)}
        self._row_of_token = np.full(len(self._vocabularies.items), -1, np.int64)
        for token in self._vocabularies.items.tokens:
            if token in self._row_of:
                self._row_of_token[self._vocabularies.items.index(token)] = self._row_of[token]
        places = [place for place, item_id in enumerate(popularity.item_ids) if item_id in self._row_of]
        self._popular_rows = np.array([self._row_of[popularity.item_ids[place]] for place in places], np.int64)
        self._popular_score_N = np.zeros(len(index), np.float32)
        self._popular_score_N[self._popular_rows] = [popularity.scores[place] for place in places]

    @classmethod
    def load(cls, directory: Path) -> Recommender:
        """Open a bundle, or a folder of the same layout.

        Raises:
            BundleError: a file is missing, damaged, or does not fit the others.
        """
        return cls.of_parts(
            directory / "retriever", directory / "ranker", directory / "index", load_popularity(directory)
        )

    @classmethod
    def of_parts(cls, retriever: Path, ranker: Path, index: Path, popularity: Popularity) -> Recommender:
        """Put the funnel together from where its parts lie."""
        return cls(load_towers(retriever), load_ranker(ranker), ItemIndex.load(index), popularity)

    @property
    def is_exact(self) -> bool:
        """Whether the index compares every item with every digit of its vector."""
        return self._index.kind == "flat"

    @property
    def item_ids(self) -> list[str]:
        """What it can recommend, ascending."""
        return self._index.item_ids

    @property
    def reads(self) -> dict[str, frozenset[str]]:
        """The features that its columns read of `users` and of `items`."""
        return self._columns.reads

    def prepare_items(self, items: Frame) -> ItemTable:
        """Align item features with the index, once for many requests.

        Args:
            items: `item_id` and the features of the item views; rows of items that the index does not hold are ignored,
                items without a row, and missing columns, count as nulls.
        """
        if "item_id" not in items.columns:
            raise ValueError(f"items need a column item_id, got {items.columns}; ask the feature store for items")
        missing = [
            pl.lit(None, dtype).alias(name) for name, dtype in ITEM_FEATURES.items() if name not in items.columns
        ]
        own = pl.DataFrame({"item_id": self.item_ids}, schema={"item_id": pl.String})
        given = items.with_columns(*missing, known=pl.lit(True)).unique("item_id", keep="last", maintain_order=True)
        aligned = own.join(given, on="item_id", how="left", maintain_order="left")
        return ItemTable(
            rank_features.item_columns(aligned, self._vocabularies), aligned["known"].fill_null(False).to_numpy()
        )

    def recommend(
        self,
        users: Frame,
        items: ItemTable,
        *,
        now: datetime,
        k: int,
        exclude: Mapping[str, Collection[str]] | None = None,
    ) -> Frame:
        """The best `k` items for each user.

        Args:
            users: `user_id` and the features of the user views, one row a user; nulls and missing columns mean unknown.
            items: from `prepare_items`.
            now: the moment that ages and recency count to.
            k: length of each list; shorter only when the catalogue holds fewer items that are not excluded.
            exclude: for each user the items that must not come.

        Returns:
            `user_id, rank, item_id, score, source`, users in the order given, `rank` from 1. `source` is `model`, or
            `popularity` for a user without history; the score is then the number of events in the popularity window.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if now.tzinfo is None:
            raise ValueError(f"now must carry a time zone, got {now}; give UTC")
        hidden = exclude or {}
        encoded = model_inputs.encode_users(users, self._vocabularies, now)
        user_ids = users["user_id"].to_list()
        lists = [
            self._one(encoded, row, hidden.get(user_id, ()), items, now, k) for row, user_id in enumerate(user_ids)
        ]
        sizes = np.array([len(rows) for rows, _, _ in lists], np.int64)
        if not sizes.sum():
            return pl.DataFrame(schema=SCHEMA)
        rows = np.concatenate([rows for rows, _, _ in lists])
        return pl.DataFrame(
            {
                "user_id": np.repeat(np.array(user_ids, object), sizes),
                "rank": np.concatenate([np.arange(1, size + 1) for size in sizes]),
                "item_id": [self.item_ids[row] for row in rows],
                "score": np.concatenate([scores for _, scores, _ in lists]).astype(np.float64),
                "source": np.repeat(np.array([source for _, _, source in lists], object), sizes),
            },
            schema=SCHEMA,
        )

    def score_of(
        self,
        user: Frame,
        items: ItemTable,
        item_ids: Collection[str],
        *,
        now: datetime,
        k: int,
        hidden: Collection[str] = (),
    ) -> dict[str, float]:
        """The scores that `recommend` gives these items for one user, those alone that are candidates for its list.

        Args:
            user: one row, as `recommend` takes it.
            items: needs to know these items and those of the user's history only.
            item_ids: what to score.
            now: the moment that ages and recency count to.
            k: the length of the list.
            hidden: the items that must not come.
        """
        encoded = model_inputs.encode_users(user, self._vocabularies, now)
        if encoded.history_BL[0, -1] == 0:
            return {}
        rows = sorted(self._row_of[item_id] for item_id in hidden if item_id in self._row_of)
        allowed_N = np.ones(len(self.item_ids), bool)
        allowed_N[rows] = False
        vector_D = self._towers.users(encoded)[0]
        candidates = self._candidates(vector_D, allowed_N, len(rows), k)
        asked = np.array(sorted(self._row_of[item_id] for item_id in item_ids if item_id in self._row_of), np.int64)
        chosen = np.intersect1d(candidates, asked)
        if not len(chosen):
            return {}
        scores = self._score(encoded, vector_D, chosen, items.columns, now)
        return {self.item_ids[row]: float(score) for row, score in zip(chosen, scores, strict=True)}

    def _one(
        self, encoded: UserInputs, row: int, hidden: Collection[str], items: ItemTable, now: datetime, k: int
    ) -> tuple[Ints, Floats, str]:
        allowed_N = np.ones(len(self.item_ids), bool)
        get = self._row_of.get
        hidden_rows = [found for item_id in hidden if (found := get(item_id)) is not None]
        allowed_N[hidden_rows] = False
        if encoded.history_BL[row, -1] == 0:
            rows = self._popular(allowed_N, k)
            return rows, self._popular_score_N[rows], "popularity"
        user = encoded.take(slice(row, row + 1))
        vector_D = self._towers.users(user)[0]
        candidates = self._candidates(vector_D, allowed_N, len(hidden_rows), k)
        scores = self._score(user, vector_D, candidates, items.columns, now)
        # candidates ascend, and so do ids: a stable sort breaks ties by id
        best = np.argsort(-scores, kind="stable")[:k]
        return candidates[best], scores[best], "model"

    def _candidates(self, vector_D: Floats, allowed_N: NDArray[np.bool_], num_hidden: int, k: int) -> Ints:
        """Retrieved and popular items, ascending; as many more are fetched as may be hidden."""
        wanted = max(self._config.num_candidates, k)
        found = self._index.search(vector_D[None], wanted + num_hidden)[1][0]
        found = found[found >= 0]
        retrieved = found[allowed_N[found]][:wanted]
        return np.union1d(retrieved, self._popular(allowed_N, self._config.num_popular_candidates))

    def _popular(self, allowed_N: NDArray[np.bool_], count: int) -> Ints:
        return self._popular_rows[allowed_N[self._popular_rows]][:count]

    def _score(self, user: UserInputs, vector_D: Floats, candidates: Ints, items: Item, now: datetime) -> Floats:
        embeddings_CD = self._vectors_ND[candidates]
        logits_C = embeddings_CD @ vector_D / np.float32(self._towers.temperature)
        history = History.of(self._row_of_token[user.history_BL], self._vectors_ND, items)
        features = rank_features.assemble(
            user,
            history,
            items.take(candidates).reshape(1, len(candidates)),
            embeddings_CD[None],
            logits_C[None].astype(np.float32),
            np.array([now.timestamp()]),
            self._columns,
        )
        return self._ranker(features[0])


def load_popularity(directory: Path) -> Popularity:
    """The fallback of a bundle.

    Raises:
        BundleError: the file is missing or is not what it should be.
    """
    path = directory / "popularity.json"
    try:
        return Popularity.from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: expected the popular items, got {error}; fetch the bundle again") from error
