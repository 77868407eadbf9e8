"""A simulated shop whose truth is known: the embedded default source, and the proving ground of every model."""

from evensong.data.simulator.config import ShopConfig
from evensong.data.simulator.policies import (
    Policy,
    Slates,
    category_policy,
    explore,
    oracle_policy,
    popularity_policy,
    random_policy,
    warmup_policy,
    widen,
)
from evensong.data.simulator.shop import DayLog, Shop

__all__ = [
    "DayLog",
    "Policy",
    "Shop",
    "ShopConfig",
    "Slates",
    "category_policy",
    "explore",
    "oracle_policy",
    "popularity_policy",
    "random_policy",
    "warmup_policy",
    "widen",
]
