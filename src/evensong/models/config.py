"""Owns the shapes of the models, as their saved `config.json` states them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from evensong.models.rank_features import FEATURES


class TwoTowerConfig(BaseModel):
    """The shape of the towers; with the vocabularies it rebuilds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimension: int
    num_heads: int = 2
    temperature: float


class RankerConfig(BaseModel):
    """The shape of the ranker, the statistics of its features, and the candidates that it learned to order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    features: tuple[str, ...] = FEATURES
    crosses: tuple[str, ...] = ()
    """Crosses of pairs, whose buckets stand behind the features."""
    num_buckets: tuple[int, ...] = ()
    hidden: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_candidates: int = 200
    num_popular_candidates: int = 100
