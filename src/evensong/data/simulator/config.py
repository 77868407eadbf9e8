"""The size and temper of a simulated shop: with its seed, everything that decides what happens in it."""

from __future__ import annotations

from datetime import date

from pydantic import Field

from evensong.types import Value


class ShopConfig(Value):
    """One shop. Two shops of equal config are the same shop; unknown keys are refused."""

    seed: int = Field(default=7, ge=0)
    start: date = date(2026, 1, 5)
    """The day on which the shop opens."""

    num_users: int = Field(default=2000, ge=1)
    num_items: int = Field(default=1000, ge=1)
    """Users and items there on the first morning."""
    new_users_per_day: int = Field(default=10, ge=0)
    new_items_per_day: int = Field(default=8, ge=0)
    slate_size: int = Field(default=20, ge=1)
    sessions_per_user_day: float = Field(default=0.5, gt=0)
    """The mean over users and days; a user's own rate is Gamma distributed around it."""
    requests_per_session: float = Field(default=1.5, ge=1, le=3)
    """The mean; a session has one to three requests, each with a slate."""

    dimension: int = Field(default=16, ge=2)
    """Dimensions in which tastes and items live."""
    favourites_per_user: int = Field(default=3, ge=1, le=10)
    """Shelves that a user likes above all."""
    taste_strength: float = Field(default=6.0, ge=0)
    """Logits between an item right at a user's taste and one that means nothing to them."""
    price_strength: float = Field(default=0.35, ge=0)
    appeal_spread: float = Field(default=0.7, ge=0)
    """Standard deviation of the items' own appeal, in logits: what makes popularity long-tailed."""
    shelf_spread: float = Field(default=0.6, ge=0)
    """Standard deviation of the shelves' log popularity: some tastes are common."""
    base_logit: float = -4.9
    drift_per_day: float = Field(default=0.01, ge=0, le=1)
    """Chance that one of a user's favourite shelves gives way to another on a day."""
    newness_boost: float = Field(default=0.6, ge=0)
    """Logits that a brand-new item gains; it fades with a time constant of a week."""

    position_decay: float = Field(default=0.35, ge=0)
    """A slot at position p is looked at with probability (1 + p) ** -position_decay."""
    clicked_satiation: float = Field(default=0.35, ge=0, le=1)
    """What is left of an item's click probability once the user has clicked it."""
    purchased_satiation: float = Field(default=0.10, ge=0, le=1)
    late_share: float = Field(default=0.02, ge=0, le=1)
    """Share of clicks, carts, purchases and dwell times that become known one to twelve hours late."""
    mean_stock: float = Field(default=10.0, gt=0)
    restock_chance: float = Field(default=0.35, ge=0, le=1)
    """Chance that a sold-out item is back on a morning."""
    discount_chance: float = Field(default=0.01, ge=0, le=1)
    """Chance that an item goes on a week's discount on a morning."""
    popularity_days: int = Field(default=30, ge=1)
    """The window in which the shop counts what is popular."""
