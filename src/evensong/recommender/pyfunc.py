"""Owns how MLflow opens a bundle: its `loader_module`, so that the registered model predicts without any pickle."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from evensong.features.views import USER_FEATURES
from evensong.recommender.funnel import Recommender

DEFAULT_K = 20


class BundlePredictor:
    """A bundle that answers from its own item features, as they stood when it was trained."""

    def __init__(self, directory: Path) -> None:
        self._recommender = Recommender.load(directory)
        self._items = self._recommender.prepare_items(pl.read_parquet(directory / "items.parquet"))
        manifest = json.loads((directory / "manifest.json").read_bytes())
        self._now = datetime.fromisoformat(manifest["train_cutoff"])

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Recommend to each row.

        Args:
            model_input: a pandas frame with `user_id` and any of the user features, such as `recent_item_ids`, a list
                of item ids, newest last. A user without history gets the popular items.
            params: `k`, the length of each list (20).

        Returns:
            A pandas frame `user_id, rank, item_id, score, source`. Items of the given history are left out.
        """
        k = int((params or {}).get("k", DEFAULT_K))
        columns = {"user_id": pl.Series(model_input["user_id"].astype(str).tolist(), dtype=pl.String)}
        for name, dtype in USER_FEATURES.items():
            if name in model_input.columns:
                values = [_plain(value) for value in model_input[name].tolist()]
                columns[name] = pl.Series(values, dtype=dtype, strict=False)
        users = pl.DataFrame(columns)
        history = users["recent_item_ids"].to_list() if "recent_item_ids" in users.columns else [None] * len(users)
        exclude = {user_id: set(ids or []) for user_id, ids in zip(users["user_id"].to_list(), history, strict=True)}
        return self._recommender.recommend(users, self._items, now=self._now, k=k, exclude=exclude).to_pandas()


def _load_pyfunc(path: str) -> BundlePredictor:
    """What MLflow calls with the bundle's directory."""
    return BundlePredictor(Path(path))


def _plain(value: Any) -> Any:
    """A cell of a pandas frame as a plain value: arrays as lists, NaN as none."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if isinstance(value, float) and value != value else value
