"""The feature report: what is missing, how values are spread and have moved, what is redundant, what the model needs.

A pure function from two frames to a `FeatureReport`, and another from the report to one self-contained page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from evensong.monitoring.drift import Drift, drift, kind_of
from evensong.types import Frame, Value

Score = Callable[[Frame], NDArray[Any]]
Metric = Callable[[Frame, NDArray[Any]], float]

#: Rows that correlations are computed from; more would tell nothing new.
_MOST_ROWS = 50_000
#: Summaries of a list column, since a list itself has neither spread nor correlation.
LENGTH = " (length)"


class Summary(Value):
    """How one feature's current values are spread: a number has quantiles, another kind just the number of values."""

    name: str
    type: str
    missing: float
    """Share of the current rows."""
    missing_training: float
    num_values: int
    mean: float | None = None
    deviation: float | None = None
    quantiles: tuple[float, ...] = ()
    """At 0, 5, 25, 50, 75, 95 and 100 per cent."""


class Importance(Value):
    """How much the metric loses when a feature's values are shuffled among the rows (Breiman, 2001, §10)."""

    name: str
    loss: float
    """Mean over the repeats; at or below zero the score does not need the feature."""
    deviation: float


class FeatureReport(Value):
    """All of it, as data."""

    title: str
    num_training: int
    num_current: int
    summaries: tuple[Summary, ...]
    drift: tuple[Drift, ...]
    correlated: tuple[str, ...] = ()
    """The names of the rows and columns of `correlation`."""
    correlation: tuple[tuple[float | None, ...], ...] = ()
    """Spearman's rank correlation of the current values, pairwise complete; none where a side does not vary."""
    redundant: tuple[tuple[str, ...], ...] = ()
    """Groups in which each feature is correlated with some other above the threshold."""
    redundant_above: float = 0.9
    metric: float | None = None
    """Of the unshuffled rows."""
    importance: tuple[Importance, ...] = Field(default=())


def build_report(
    training: Frame,
    current: Frame,
    score: Score | None = None,
    *,
    metric: Metric | None = None,
    features: Sequence[str] | None = None,
    title: str = "Features",
    redundant_above: float = 0.9,
    num_repeats: int = 3,
    generator: np.random.Generator | None = None,
) -> FeatureReport:
    """Compare the current rows with those of the training set.

    Args:
        score: gives one prediction a row of a frame; none: no importance is measured.
        metric: of a frame and the predictions for it, larger is better; needed with `score`.
        features: the columns to report on; none: all that both frames have. A list column is reported by its length.
        redundant_above: correlations at or above it, of either sign, make features redundant.
        num_repeats: shuffles a feature, each from `generator`.

    Raises:
        ValueError: a feature is missing on a side, no feature is left, or `score` comes without `metric`.
    """
    if (score is None) != (metric is None):
        raise ValueError("importance needs both a score and a metric, got only one of them")
    names = list(features) if features is not None else [name for name in training.columns if name in current.columns]
    for side, frame in (("training", training), ("current", current)):
        if missing := [name for name in names if name not in frame.columns]:
            raise ValueError(f"the {side} frame lacks {', '.join(missing)}; it has {', '.join(frame.columns)}")
    before, after = (_flat(frame.select(names)) for frame in (training, current))
    if not after.columns:
        raise ValueError("expected at least one feature that both frames have, found none; name them in `features`")
    binned = [name for name in after.columns if kind_of(before[name]) and kind_of(after[name])]
    numbers = [name for name in after.columns if after[name].dtype.is_numeric() or after[name].dtype == pl.Boolean]
    correlation = _correlations(after.select(numbers))
    report = FeatureReport(
        title=title,
        num_training=len(training),
        num_current=len(current),
        summaries=tuple(_summary(before[name], after[name]) for name in after.columns),
        drift=tuple(drift(before, after, binned)),
        correlated=tuple(numbers),
        correlation=tuple(tuple(None if np.isnan(r) else float(r) for r in row) for row in correlation),
        redundant=tuple(_groups(numbers, correlation, redundant_above)),
        redundant_above=redundant_above,
    )
    if score is None or metric is None:
        return report
    whole = float(metric(current, score(current)))
    losses = permutation_importance(
        current, names, score, metric, num_repeats=num_repeats, generator=generator or np.random.default_rng(0)
    )
    return report.model_copy(update={"metric": whole, "importance": tuple(losses)})


def permutation_importance(
    frame: Frame,
    features: Sequence[str | tuple[str, ...]],
    score: Score,
    metric: Metric,
    *,
    num_repeats: int = 3,
    generator: np.random.Generator,
) -> list[Importance]:
    """What each feature is worth to the metric, largest first, ties by name.

    Columns that only mean something together, such as categories and their shares, are given as a tuple and shuffled as
    one, named `a + b`.

    Of two features that say the same each may look worthless alone; the redundant groups name them.
    """
    whole = metric(frame, score(frame))
    found = []
    for feature in features:
        names = [feature] if isinstance(feature, str) else list(feature)
        losses = []
        for _ in range(num_repeats):
            order = generator.permutation(len(frame))
            shuffled = frame.with_columns(frame[name].gather(order) for name in names)
            losses.append(float(whole - metric(shuffled, score(shuffled))))
        found.append(Importance(name=" + ".join(names), loss=float(np.mean(losses)), deviation=float(np.std(losses))))
    return sorted(found, key=lambda one: (-one.loss, one.name))


def _flat(frame: Frame) -> Frame:
    """Lists by their length; times as days, so that they are spread and drift like numbers."""
    columns = []
    for values in frame.get_columns():
        if isinstance(values.dtype, pl.List | pl.Array):
            length = values.list.len() if isinstance(values.dtype, pl.List) else values.arr.len()
            columns.append(length.alias(values.name + LENGTH))
        elif values.dtype.is_temporal() and values.dtype in (pl.Datetime, pl.Date):
            columns.append((values.cast(pl.Datetime("us")).dt.epoch("us") / 86_400e6).alias(values.name))
        else:
            columns.append(values)
    return pl.DataFrame(columns)


def _summary(before: pl.Series, after: pl.Series) -> Summary:
    found = Summary(
        name=after.name,
        type=str(after.dtype),
        missing=_missing(after),
        missing_training=_missing(before),
        num_values=after.drop_nulls().n_unique() if kind_of(after) else 0,
    )
    numbers = _numbers(after) if after.dtype.is_numeric() else np.zeros(0)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return found
    quantiles = np.quantile(numbers, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
    spread = {
        "mean": float(numbers.mean()),
        "deviation": float(numbers.std()),
        "quantiles": tuple(map(float, quantiles)),
    }
    return found.model_copy(update=spread)


def _missing(values: pl.Series) -> float:
    if not len(values):
        return 0.0
    absent = values.null_count() + (int(values.is_nan().sum()) if values.dtype.is_float() else 0)
    return absent / len(values)


def _numbers(values: pl.Series) -> NDArray[np.float64]:
    return values.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _correlations(frame: Frame) -> NDArray[np.float64]:
    """Spearman's correlation of each two columns over the rows that have both."""
    step = max(1, -(-len(frame) // _MOST_ROWS))
    table = [_numbers(values.gather_every(step)) for values in frame.get_columns()]
    found = np.full((len(table), len(table)), np.nan)
    for i, left in enumerate(table):
        for j, right in enumerate(table[: i + 1]):
            both = np.isfinite(left) & np.isfinite(right)
            if both.sum() < 3:
                continue
            a, b = (pl.Series(side[both]).rank("average").to_numpy() for side in (left, right))
            a, b = a - a.mean(), b - b.mean()
            size = np.sqrt((a @ a) * (b @ b))
            if size > 0:
                found[i, j] = found[j, i] = np.clip((a @ b) / size, -1, 1)
    return found


def _groups(names: Sequence[str], correlation: NDArray[np.float64], above: float) -> list[tuple[str, ...]]:
    """The connected components of "correlated above the threshold", of two features or more."""
    group = list(range(len(names)))
    for i, j in zip(*np.nonzero(np.nan_to_num(np.abs(correlation)) >= above), strict=True):
        low, high = sorted((group[i], group[j]))
        group = [low if of == high else of for of in group]
    members = [tuple(names[i] for i, of in enumerate(group) if of == one) for one in sorted(set(group))]
    return [found for found in members if len(found) > 1]


def render(report: FeatureReport) -> str:
    """One HTML page: no script, no font, no picture from elsewhere."""
    parts = [_head(report), _overview(report)]
    if report.importance:
        parts.append(_importance(report))
    if report.redundant:
        groups = "".join(f"<li>{_text(', '.join(group))}</li>" for group in report.redundant)
        parts.append(
            f"<h2>Say the same</h2><p>Rank correlation of {report.redundant_above:g} or more; one of each may do.</p>"
            f"<ul>{groups}</ul>"
        )
    if len(report.correlated) > 1:
        parts.append(f"<h2>Correlation</h2>{_heat_map(report)}")
    pictures = "".join(_histogram(one) for one in sorted(report.drift, key=lambda one: (-one.psi, one.name)))
    parts.append(
        f'<h2>Distributions</h2><p class="key"><i class="t"></i> training <i class="c"></i> current</p>{pictures}'
    )
    return "".join(parts) + "</main></body></html>\n"


def pictures(report: FeatureReport) -> dict[str, str]:
    """The page's pictures, each as an SVG file of its own: importance, correlation, one distribution a feature."""
    found = {}
    if report.importance:
        found["importance.svg"] = _alone(_importance(report))
    if len(report.correlated) > 1:
        found["correlation.svg"] = _alone(_heat_map(report))
    for one in report.drift:
        name = re.sub(r"[^\w-]+", "_", one.name).strip("_")
        found[f"distributions/{name}.svg"] = _alone(_histogram(one))
    return found


def _alone(markup: str) -> str:
    """The picture in a piece of the page, in light colours, since a file knows no style sheet."""
    picture = markup[markup.index("<svg") : markup.index("</svg>") + len("</svg>")]
    head, _, rest = picture.partition(">")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}><style>{_PICTURE_STYLE}</style>{rest}\n"


_PICTURE_STYLE = (
    "text{font:11px system-ui;fill:#5b6875}rect.t{fill:#9fb3c8}rect.c,rect.pos{fill:#1f6feb}rect.neg{fill:#c62828}"
)
_STYLE = """
:root{--ink:#1c2733;--soft:#5b6875;--line:#dfe4e9;--back:#fff;--train:#9fb3c8;--now:#1f6feb;--bad:#c62828;--mid:#b26a00}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9ee;--soft:#9aa7b4;--line:#313a44;--back:#14191f;--train:#5c7186;
--now:#58a6ff;--bad:#ff7b72;--mid:#e3a23c}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);margin:0}
main{max-width:1000px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}
th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}
th{font-weight:600;color:var(--soft)}p{color:var(--soft)}.much{color:var(--bad);font-weight:600}.some{color:var(--mid)}
figure{display:inline-block;margin:.5rem 1rem .5rem 0}figcaption{font-weight:600}
svg text{font:11px system-ui;fill:var(--soft)}
.key i{display:inline-block;width:.8em;height:.8em;margin:0 .2em 0 .8em}
.t{background:var(--train)}.c{background:var(--now)}
rect.t{fill:var(--train)}rect.c{fill:var(--now)}rect.pos{fill:var(--now)}rect.neg{fill:var(--bad)}
"""


def _head(report: FeatureReport) -> str:
    moved = [one.name for one in report.drift if one.verdict == "much"]
    said = f"{len(moved)} moved far: {', '.join(moved)}." if moved else "None has moved far from the training set."
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(report.title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><main>'
        f"<h1>{_text(report.title)}</h1><p>{len(report.summaries)} features, {report.num_current:,} rows against "
        f"{report.num_training:,} of the training set. {_text(said)}</p>"
    )


def _overview(report: FeatureReport) -> str:
    moved = {one.name: one for one in report.drift}
    rows = []
    for one in report.summaries:
        found = moved.get(one.name)
        verdict = found.verdict if found else ""
        figures = [f"{one.missing:.1%}", f"{one.missing_training:.1%}", f"{one.num_values:,}", _number(one.mean)]
        figures += [_number(one.quantiles[i] if one.quantiles else None) for i in (1, 3, 5)]
        figures += [f"{found.psi:.3f}" if found else "", f"{found.kl:.3f}" if found else "", verdict]
        cells = "".join(f"<td>{figure}</td>" for figure in figures[:-1])
        rows.append(f'<tr><td>{_text(one.name)}</td>{cells}<td class="{verdict}">{verdict}</td></tr>')
    names = ["feature", "missing", "in training", "values", "mean", "5 %", "median", "95 %", "PSI", "KL", "drift"]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(rows)
    return (
        f'<h2>Overview</h2><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _importance(report: FeatureReport) -> str:
    largest = max((abs(one.loss) for one in report.importance), default=0) or 1
    rows = []
    for i, one in enumerate(report.importance):
        y, width = 18 * i, 320 * abs(one.loss) / largest
        kind = "pos" if one.loss >= 0 else "neg"
        rows.append(
            f'<text x="250" y="{y + 13}" text-anchor="end">{_text(one.name)}</text>'
            f'<rect class="{kind}" x="258" y="{y + 3}" width="{width:.1f}" height="12"/>'
            f'<text x="{264 + width:.1f}" y="{y + 13}">{one.loss:.4f} ± {one.deviation:.4f}</text>'
        )
    height = 18 * len(report.importance)
    return (
        f"<h2>Importance</h2><p>Loss of the metric ({_number(report.metric)}) when one feature is shuffled.</p>"
        f'<svg viewBox="0 0 760 {height}" width="760" role="img" aria-label="Permutation importance">'
        f"{''.join(rows)}</svg>"
    )


def _heat_map(report: FeatureReport) -> str:
    size, left = 16, 190
    cells = []
    for i, name in enumerate(report.correlated):
        cells.append(f'<text x="{left - 6}" y="{i * size + 12}" text-anchor="end">{_text(name)}</text>')
        for j, found in enumerate(report.correlation[i]):
            if found is None:
                continue
            kind = "pos" if found >= 0 else "neg"
            said = f"{_text(name)}, {_text(report.correlated[j])}: {found:.2f}"
            cells.append(
                f'<rect class="{kind}" fill-opacity="{abs(found):.2f}" x="{left + j * size}" y="{i * size}" '
                f'width="{size - 1}" height="{size - 1}"><title>{said}</title></rect>'
            )
    side = size * len(report.correlated)
    return (
        f'<div class="wide"><svg width="{left + side}" height="{side}" role="img" '
        f'aria-label="Rank correlation of the features">{"".join(cells)}</svg></div>'
    )


def _histogram(one: Drift) -> str:
    shares = [*one.histogram.training, *one.histogram.current]
    top, width = max([*shares, 1e-9]), 300 / max(1, len(one.histogram.labels))
    bars = []
    for i, label in enumerate(one.histogram.labels):
        for side, share in (("t", one.histogram.training[i]), ("c", one.histogram.current[i])):
            height = 90 * share / top
            x, y, wide = i * width + (0 if side == "t" else width * 0.45), 95 - height, width * 0.42
            said = f"{_text(label)}: {share:.1%} {'training' if side == 't' else 'current'}"
            bars.append(
                f'<rect class="{side}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{height:.1f}">'
                f"<title>{said}</title></rect>"
            )
    return (
        f'<figure><figcaption>{_text(one.name)} <span class="{one.verdict}">PSI {one.psi:.3f}</span></figcaption>'
        f'<svg viewBox="0 0 300 96" width="300" role="img" aria-label="{_text(one.name)}">{"".join(bars)}</svg>'
        "</figure>"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
