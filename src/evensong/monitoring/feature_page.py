"""The feature report as one self-contained page, and its pictures as files: no script, no font, nothing from elsewhere.

The page reads on a phone, in the dark and on paper: pictures scale with the window, wide tables scroll by themselves.
"""

from __future__ import annotations

import html
import re

from evensong.monitoring.drift import MUCH, SOME, Drift
from evensong.monitoring.feature_report import FeatureReport

#: Bars of a histogram that have room for a name each.
_MOST_NAMED = 4


def render(report: FeatureReport) -> str:
    """One HTML page."""
    parts = [_head(report), _figures(report)]
    parts += [f'<p class="note">{_text(note)}</p>' for note in report.notes]
    parts.append(_overview(report))
    if report.importance:
        parts.append(_importance(report))
    if report.served or report.served_message:
        parts.append(_served(report))
    if report.redundant:
        groups = "".join(f"<li>{_text(', '.join(group))}</li>" for group in report.redundant)
        parts.append(
            f"<h2>Say the same</h2><p>Rank correlation of {report.redundant_above:g} or more; one of each may do.</p>"
            f'<ul class="groups">{groups}</ul>'
        )
    if len(report.correlated) > 1:
        parts.append(_correlation(report))
    parts.append(_distributions(report))
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
    "text{font:11px system-ui,sans-serif;fill:#5b6875}text.n{fill:#1c2733}rect.t{fill:#9fb3c8}"
    "rect.c,rect.pos{fill:#1f6feb}rect.neg{fill:#c62828}"
)
_STYLE = """
:root{--ink:#1c2733;--soft:#5b6875;--line:#dfe4e9;--back:#fff;--card:#f5f7f9;--train:#9fb3c8;--now:#1f6feb;
--bad:#c62828;--mid:#9a5b00}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9ee;--soft:#9aa7b4;--line:#313a44;--back:#14191f;--card:#1c232b;
--train:#5c7186;--now:#58a6ff;--bad:#ff7b72;--mid:#e3a23c}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);margin:0;-webkit-text-size-adjust:100%}
main{max-width:1100px;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .5rem}h2{font-size:1.15rem;margin:2.5rem 0 .25rem}
p{color:var(--soft);margin:.25rem 0 .75rem;max-width:70ch}.note{color:var(--mid)}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.5rem;margin:1rem 0}
dl div{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}
dt{color:var(--soft);font-size:.85rem}dd{margin:0;font-size:1.35rem;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:.5rem}
table{border-collapse:collapse;width:100%;font-size:.87rem;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid var(--line)}tbody tr:last-child>*{border-bottom:0}
thead th{font-weight:600;color:var(--soft)}
th:first-child{text-align:left;font-weight:400;position:sticky;left:0;background:var(--back);
white-space:normal;overflow-wrap:anywhere;min-width:9rem}
.much{color:var(--bad);font-weight:600}.some{color:var(--mid)}
.groups{padding-left:1.2rem}.groups li{overflow-wrap:anywhere;margin:.2rem 0}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(240px,1fr));gap:1rem 1.25rem}
figure{margin:0;min-width:0;break-inside:avoid}
figcaption{font-size:.87rem;display:flex;justify-content:space-between;gap:.5rem;align-items:baseline}
figcaption b{font-weight:600;overflow-wrap:anywhere;min-width:0}figcaption span{white-space:nowrap}
svg{display:block;width:100%;height:auto}.map{padding:.5rem}.map svg{width:auto}.bars{max-width:560px}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}svg text.n{fill:var(--ink)}
.key i{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .8em;border-radius:2px}
.key i:first-child{margin-left:0}
i.t{background:var(--train)}i.c,i.pos{background:var(--now)}i.neg{background:var(--bad)}
rect.t{fill:var(--train)}rect.c{fill:var(--now)}rect.pos{fill:var(--now)}rect.neg{fill:var(--bad)}
@media print{.wide{overflow:visible;border:0}body{font-size:11px}main{max-width:none}}
"""


_NONE_MOVED = "None has moved far from the training set."
_USUAL = (
    "Counts, sums and windows of a shop that is young or grows move each night, since the training set reaches further "
    "back: look first at shares, averages, prices and what is missing."
)


def _head(report: FeatureReport) -> str:
    moved = [one.name for one in report.drift if one.verdict == "much"]
    said = f"{len(moved)} moved far: {', '.join(moved)}. {_USUAL}" if moved else _NONE_MOVED
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(report.title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><style>{_STYLE}</style></head><body><main>'
        f"<h1>{_text(report.title)}</h1><p>{report.num_current:,} rows against {report.num_training:,} of the training "
        f"set. {_text(said)}</p>"
    )


def _figures(report: FeatureReport) -> str:
    verdicts = [one.verdict for one in report.drift]
    figures = {
        "features": len(report.summaries),
        "moved far": verdicts.count("much"),
        "moved somewhat": verdicts.count("some"),
        "missing in half the rows": sum(one.missing > 0.5 for one in report.summaries),
        "groups that say the same": len(report.redundant),
    }
    return (
        "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{value:,}</dd></div>" for name, value in figures.items()) + "</dl>"
    )


def _overview(report: FeatureReport) -> str:
    moved = {one.name: one for one in report.drift}
    rows = []
    for one in report.summaries:
        found = moved.get(one.name)
        verdict = found.verdict if found else ""
        figures = [f"{one.missing:.1%}", f"{one.missing_training:.1%}", f"{one.num_values:,}", _number(one.mean)]
        figures += [_number(one.quantiles[i] if one.quantiles else None) for i in (1, 3, 5)]
        figures += [f"{found.psi:.3f}" if found else "", f"{found.kl:.3f}" if found else ""]
        cells = "".join(f"<td>{figure}</td>" for figure in figures)
        name = _text(one.name)
        rows.append(f'<tr><th scope="row" title="{name}">{name}</th>{cells}<td class="{verdict}">{verdict}</td></tr>')
    names = ["feature", "missing", "in training", "values", "mean", "5 %", "median", "95 %", "PSI", "KL", "drift"]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f"<h2>Overview</h2><p>Drift by the population stability index: from {SOME:g} some, above {MUCH:g} much.</p>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _importance(report: FeatureReport) -> str:
    largest = max((abs(one.loss) for one in report.importance), default=0) or 1
    rows, shown = [], [one for one in report.importance if one.loss or one.deviation]
    for i, one in enumerate(shown):
        y, width = 34 * i, 240 * abs(one.loss) / largest
        kind = "pos" if one.loss >= 0 else "neg"
        rows.append(
            f'<text class="n" x="0" y="{y + 12}">{_text(_cut(one.name, 62))}<title>{_text(one.name)}</title></text>'
            f'<rect class="{kind}" x="0" y="{y + 17}" width="{max(width, 0.5):.1f}" height="9"/>'
            f'<text x="{width + 6:.1f}" y="{y + 26}">{one.loss:.4f} ± {one.deviation:.4f}</text>'
        )
    height = 34 * max(1, len(shown))
    model = _text(report.model) if report.model else "the model"
    idle = [one.name for one in report.importance if not (one.loss or one.deviation)]
    rest = f"<p>Nothing is lost without {_text(', '.join(idle))}.</p>" if idle else ""
    rest += f"<p>It does not read {_text(', '.join(report.unread))}.</p>" if report.unread else ""
    return (
        f"<h2>Importance</h2><p>What the recall of {model} ({_number(report.metric)}) loses when one feature is "
        "shuffled, and how far the shuffles differ. Of two features that say the same, each alone may look worthless."
        f'</p><div class="bars"><svg viewBox="0 0 380 {height}" role="img" aria-label="Permutation importance">'
        f"{''.join(rows)}</svg></div>{rest}"
    )


def _served(report: FeatureReport) -> str:
    rows = []
    for one in report.served:
        side = "much" if one.num_different else ""
        cells = f'<td class="{side}">{_number(one.max_difference)}</td>'
        cells += f"<td>{one.num_different:,} of {one.num_values:,}</td>"
        cells += "".join(f"<td>{_text(_cut(said or '', 40))}</td>" for said in (one.served, one.offline))
        cells += f"<td>{_text(one.request_id or '')}</td>"
        rows.append(f'<tr><th scope="row">{_text(one.name)}</th>{cells}</tr>')
    names = ["feature", "largest difference", "values that differ", "served", "offline", "request"]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    return f"<h2>Served against offline</h2><p>{_text(report.served_message or '')}</p>{table if rows else ''}"


def _correlation(report: FeatureReport) -> str:
    return (
        '<h2>Correlation</h2><p class="key">Ranks, each pair where both are known: <i class="pos"></i>together '
        '<i class="neg"></i>opposite; the fuller, the closer. Columns stand in the order of the rows.</p>'
        f'<div class="wide map">{_heat_map(report)}</div>'
    )


def _heat_map(report: FeatureReport) -> str:
    size, left, top = 16, 215, 16
    # what does not vary goes with nothing
    varies = [i for i, row in enumerate(report.correlation) if any(found is not None for found in row)]
    cells = []
    for i, place in enumerate(varies):
        name, y = report.correlated[place], top + i * size
        cells.append(
            f'<text class="n" x="{left - 26}" y="{y + 12}" text-anchor="end">{_text(_cut(name, 32))}</text>'
            f'<text x="{left - 5}" y="{y + 12}" text-anchor="end">{i + 1}</text>'
        )
        if i % 5 == 4:
            cells.append(f'<text x="{left + i * size + 7}" y="11" text-anchor="middle">{i + 1}</text>')
        for j, other in enumerate(varies):
            found = report.correlation[place][other]
            if found is None:
                continue
            kind = "pos" if found >= 0 else "neg"
            said = f"{_text(name)}, {_text(report.correlated[other])}: {found:.2f}"
            cells.append(
                f'<rect class="{kind}" fill-opacity="{abs(found):.2f}" x="{left + j * size}" y="{y}" '
                f'width="{size - 1}" height="{size - 1}"><title>{said}</title></rect>'
            )
    side = size * len(varies)
    return (
        f'<svg width="{left + side}" height="{top + side}" role="img" '
        f'aria-label="Rank correlation of the features">{"".join(cells)}</svg>'
    )


def _distributions(report: FeatureReport) -> str:
    found = "".join(_histogram(one) for one in sorted(report.drift, key=lambda one: (-one.psi, one.name)))
    return (
        '<h2>Distributions</h2><p class="key"><i class="t"></i>training <i class="c"></i>current; what has moved most '
        f'stands first.</p><div class="grid">{found}</div>'
    )


def _histogram(one: Drift) -> str:
    labels = one.histogram.labels
    shares = [*one.histogram.training, *one.histogram.current]
    top, width = max([*shares, 1e-9]), 300 / max(1, len(labels))
    bars = []
    for i, label in enumerate(labels):
        for side, share in (("t", one.histogram.training[i]), ("c", one.histogram.current[i])):
            height = 80 * share / top
            x, y, wide = i * width + (0.04 if side == "t" else 0.5) * width, 82 - height, width * 0.44
            said = f"{_text(label)}: {share:.1%} {'training' if side == 't' else 'current'}"
            bars.append(
                f'<rect class="{side}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{height:.1f}">'
                f"<title>{said}</title></rect>"
            )
    return (
        f'<figure><figcaption><b>{_text(one.name)}</b><span class="{one.verdict}">PSI {one.psi:.3f}</span></figcaption>'
        f'<svg viewBox="0 0 300 98" role="img" aria-label="{_text(one.name)}">{"".join(bars)}{_axis(labels, width)}'
        "</svg></figure>"
    )


def _axis(labels: tuple[str, ...], width: float) -> str:
    """The bins' names where there is room for them, else those of the first one and of the last one with values."""
    if len(labels) <= _MOST_NAMED:
        middles = ((label, (i + 0.5) * width) for i, label in enumerate(labels))
        return "".join(
            f'<text x="{x:.0f}" y="95" text-anchor="middle">{_text(_cut(label, int(width / 6)))}</text>'
            for label, x in middles
        )
    first, last = _cut(labels[0], 22), _cut(labels[-2], 22)
    return (
        f'<text x="0" y="95">{_text(first)}</text><text x="300" y="95" text-anchor="end">{_text(last)}, missing</text>'
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
