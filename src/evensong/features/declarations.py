"""How a feature view is declared: what it is about, who keeps it, and what each of its features means."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from evensong.types import Value


class FeatureDeclaration(Value):
    """One feature of a view."""

    name: str
    type: str
    """As polars writes it: `String`, `Float64`, `List(String)`."""
    description: str
    window: str = ""
    """The stretch of time that it looks back on: `7 days`, `half-life 7 days`; empty: everything known."""


class ViewDeclaration(Value):
    """One view: the rows of one entity that one function computes."""

    name: str
    entity: Literal["user_id", "item_id"]
    source: str
    """The tables of the lake that it is computed from."""
    function: str
    """`module:name` of what computes it; its code is part of the definition."""
    features: tuple[FeatureDeclaration, ...]
    description: str = ""
    owner: str = "evensong"
    parameters: dict[str, str] = Field(default={})
    """Settings that its values depend on."""
