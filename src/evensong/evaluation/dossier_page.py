"""The dossier as one self-contained page: no script, nothing loaded, for a phone, for paper, by day and by night."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from evensong.evaluation.against_champion import percent
from evensong.evaluation.dossier import Comparison, Dossier

WIDTH = 320


def render(dossier: Dossier) -> str:
    """The page's HTML; every text of the dossier is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "address": address,
        "figure": figure,
        "moment": moment,
        "percent": percent,
        "readable": readable,
        "signed": signed,
        "slice": slice_name,
        "words": words,
        "yaml": lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=None),
    }
    environment.tests["in_lake"] = lambda name: name.startswith("lake_versions.")
    template = environment.from_string(resources.files(__package__).joinpath("dossier.html.j2").read_text())
    checks, slices = dossier.decision.checks, [row.gain for row in dossier.slices if row.gain]
    primary = next((row for row in dossier.metrics if row.name == dossier.primary_metric), None)
    return template.render(
        d=dossier,
        verdict=_verdict(dossier),
        primary=primary,
        adjusted=primary is not None and _is_adjusted(primary),
        counts={
            "passed": sum(check.passed for check in checks),
            "failed": sum(not check.passed for check in checks),
            "doubtful": sum(check.doubtful for check in checks),
        },
        # what kept it out first, then what is in doubt
        checks=sorted(checks, key=lambda check: (check.passed, not check.doubtful)),
        slice_confidence=(1 + slices[0].confidence) / 2 if slices else None,
        # the one that decides, what else the gate asked about, the rest
        metrics=sorted(dossier.metrics, key=lambda row: (row is not primary, row.bound is None)),
        gain_picture=lambda row: Markup(gain_picture(row)),
        curve_picture=lambda values: Markup(curve_picture(values)),
        bar=lambda value, most: Markup(bar_picture(value, most)),
    )


def figure(value: float | None) -> str:
    """A figure in as many digits as it deserves; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def signed(value: float) -> str:
    """A change, with its sign."""
    return f"{value:+.4f}"


def moment(value: datetime) -> str:
    """A moment to the minute."""
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def words(name: str) -> str:
    """A name with spaces, so that it breaks on a narrow screen."""
    kind, _, rest = name.partition("slice.")
    if not kind and rest:
        return f"slice · {slice_name(rest)}"
    return name.replace("_", " ").replace(".", " · ")


def slice_name(name: str) -> str:
    """A slice's name with spaces; the value of an attribute stays as it is."""
    attribute, _, value = name.partition("=")
    return f"{attribute} = {value}" if value else words(name)


def readable(text: str) -> str:
    """A value of the lineage; of one that holds an object, its entries, and of those within it only how many."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if not isinstance(value, dict):
        return text
    return ", ".join(
        f"{name} {len(inner)}" if isinstance(inner, dict) else f"{name} {inner}" for name, inner in value.items()
    )


def address(place: str) -> str:
    """What a link to a place leads to: a file where it is no address."""
    return place if "://" in place else f"file://{place}"


def gain_picture(row: Comparison) -> str:
    """A change with its interval, a line at zero and a dashed one at the bound."""
    gain = row.gain
    if gain is None:
        return ""
    reach = max(abs(gain.lower), abs(gain.upper), abs(row.bound or 0.0)) or 1.0

    def x(value: float) -> float:
        return round(100 + value / reach * 94, 1)

    bound = "" if row.bound is None else f'<line class="bound" x1="{x(row.bound)}" y1="2" x2="{x(row.bound)}" y2="22"/>'
    said = f"{signed(gain.mean)}, from {signed(gain.lower)} to {signed(gain.upper)}"
    return (
        f'<svg class="gain" viewBox="0 0 200 24" role="img" aria-label="{said}">'
        f'<line x1="100" y1="0" x2="100" y2="24"/>{bound}'
        f'<g class="{_side(row)}"><line x1="{x(gain.lower)}" y1="12" x2="{x(gain.upper)}" y2="12"/>'
        f'<circle cx="{x(gain.mean)}" cy="12" r="5"/></g></svg>'
    )


def curve_picture(values: Sequence[float]) -> str:
    """A loss by epoch, from the first to the last."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    points = " ".join(
        f"{6 + (WIDTH - 12) * number / (len(values) - 1):.1f},{8 + 64 * (high - value) / spread:.1f}"
        for number, value in enumerate(values)
    )
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} 92" role="img" aria-label="loss by epoch">'
        f'<polyline points="{points}"/><text x="2" y="90">{values[0]:.4g} after the first epoch</text>'
        f'<text x="{WIDTH - 2}" y="90" text-anchor="end">{values[-1]:.4g} after {len(values)}</text></svg>'
    )


def bar_picture(value: float, most: float) -> str:
    """A bar as long as the value's share of `most`."""
    share = 0.0 if most <= 0 else min(1.0, max(0.0, value / most))
    bar = f'<rect width="{100 * share:.1f}" height="8"/>'
    return f'<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none">{bar}</svg>'


def _side(row: Comparison) -> str:
    """As the gate sees it; a figure that it did not ask about takes no side, for some are better when they fall."""
    return {"passed": "good", "failed": "bad", "doubt": "even", None: ""}[row.verdict]


def _is_adjusted(primary: Comparison) -> bool:
    if primary.gain is None or primary.challenger is None or primary.champion is None:
        return False
    return abs(primary.gain.mean - (primary.challenger - primary.champion)) > 1e-9


def _verdict(dossier: Dossier) -> dict[str, Any]:
    decision = dossier.decision
    if decision.needs_review:
        said = "A person must decide" + (": the evidence says promote" if decision.promote else ": the evidence doubts")
        return {"word": said, "side": "even"}
    return {"word": "Promote", "side": "good"} if decision.promote else {"word": "Keep the champion", "side": "bad"}
