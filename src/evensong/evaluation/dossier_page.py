"""The dossier as one self-contained page: no script, nothing loaded, for a phone, for paper, by day and by night."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from evensong.evaluation.bootstrap import Interval
from evensong.evaluation.dossier import Comparison, Dossier

WIDTH = 320


def render(dossier: Dossier) -> str:
    """The page's HTML; every text of the dossier is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": figure, "signed": signed, "words": words}
    template = environment.from_string(resources.files(__package__).joinpath("dossier.html.j2").read_text())
    return template.render(
        d=dossier,
        verdict=_verdict(dossier),
        interval_picture=lambda rows: Markup(interval_picture(rows)),
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


def words(name: str) -> str:
    """A name with spaces, so that it breaks on a narrow screen."""
    return name.replace("_", " ").replace(".", " · ")


def interval_picture(rows: Sequence[Comparison]) -> str:
    """The gains as points with their intervals around a line at zero, one row each, on one scale."""
    gains = [(row.name, row.gain) for row in rows if row.gain is not None]
    if not gains:
        return ""
    reach = max(max(abs(gain.lower), abs(gain.upper)) for _, gain in gains) or 1.0
    height, middle = 26 * len(gains) + 22, WIDTH / 2

    def x(value: float) -> float:
        return round(middle + value / reach * (middle - 12), 1)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="gains with their intervals">',
        f'<line class="zero" x1="{middle}" y1="0" x2="{middle}" y2="{height - 16}"/>',
    ]
    for number, (_, gain) in enumerate(gains):
        y = 26 * number + 17
        parts.append(
            f'<g class="{_side(gain)}"><line x1="{x(gain.lower)}" y1="{y}" x2="{x(gain.upper)}" y2="{y}"/>'
            f'<circle cx="{x(gain.mean)}" cy="{y}" r="4"/></g>'
            f'<text x="2" y="{y - 6}">{number + 1}</text>'
        )
    parts.append(
        f'<text x="2" y="{height - 3}">{-reach:.3g}</text>'
        f'<text x="{middle}" y="{height - 3}" text-anchor="middle">0</text>'
        f'<text x="{WIDTH - 2}" y="{height - 3}" text-anchor="end">+{reach:.3g}</text></svg>'
    )
    return "".join(parts)


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
        f'<svg viewBox="0 0 {WIDTH} 92" role="img" aria-label="loss by epoch"><polyline points="{points}"/>'
        f'<text x="2" y="90">{values[0]:.4g} at first</text>'
        f'<text x="{WIDTH - 2}" y="90" text-anchor="end">{values[-1]:.4g} at last</text></svg>'
    )


def bar_picture(value: float, most: float) -> str:
    """A bar as long as the value's share of `most`."""
    share = 0.0 if most <= 0 else min(1.0, max(0.0, value / most))
    bar = f'<rect width="{100 * share:.1f}" height="8"/>'
    return f'<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none">{bar}</svg>'


def _side(gain: Interval) -> str:
    return "good" if gain.lower > 0 else "bad" if gain.upper < 0 else "even"


def _verdict(dossier: Dossier) -> dict[str, Any]:
    decision = dossier.decision
    if decision.needs_review:
        said = "A person must decide" + (": the evidence says promote" if decision.promote else ": the evidence doubts")
        return {"word": said, "side": "even"}
    return {"word": "Promote", "side": "good"} if decision.promote else {"word": "Keep the champion", "side": "bad"}
