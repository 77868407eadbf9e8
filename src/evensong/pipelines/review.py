"""The step in which a person is asked: what the page in Airflow says, and what the answer does."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from evensong.errors import PromotionRefusedError
from evensong.registry import decisions, review, tracking, versions
from evensong.registry.review import Answer, Outcome
from evensong.registry.versions import ModelVersion
from evensong.settings import Settings
from evensong.types import PromotionDecision, Value

MAX_LINES = 12


class Question(Value):
    """What a person reads before the answer."""

    subject: str
    body: str
    """Markdown: the gate's verdict and why, the figures, what nobody's answer comes to, where to read on."""


def question(settings: Settings, version: str, dossier_url: str) -> Question:
    """The question about a waiting version, from its decision and figures.

    Raises:
        RegistryError: there is no such version, or it has no decision.
    """
    found = versions.get(settings, version)
    decision = decisions.read(settings, found)
    verdict = "The evidence says promote" if decision.promote else "The gate does not promote it by itself"
    parts = [
        f"**{verdict}, and the policy asks a person.**",
        f"Version {found.version} of the night of {found.as_of:%Y-%m-%d %H:%M} UTC, judged against {_champion(found)}.",
        _table(found),
        _lines("In doubt", [check.message for check in decision.checks if check.doubtful]),
        _lines("Why", decision.reasons),
        _deadline(found),
        f"[Dossier]({dossier_url}) · [Version in MLflow]({version_page(settings, found.version)})",
    ]
    return Question(
        subject=f"Promote {settings.registry.model_name} version {found.version}, the night of {found.as_of:%Y-%m-%d}?",
        body="\n\n".join(part for part in parts if part),
    )


def answered(settings: Settings, version: str) -> Answer | None:
    """The answer that counts, if there is one by now, whoever gave it; nothing is moved.

    Raises:
        PromotionRefusedError: the version was never put to review.
    """
    return review.settle(settings, version)


def is_asked(settings: Settings, version: str) -> bool:
    """Whether the version's present decision was put to review, answered or not."""
    return review.is_asked(versions.get(settings, version))


def is_in_airflow(settings: Settings, version: str) -> bool:
    """Whether the request that Airflow keeps from an earlier try is about the version's present decision."""
    return review.is_in_airflow(versions.get(settings, version))


def put_in_airflow(settings: Settings, version: str) -> None:
    """Note, before Airflow is told, that it shows the question about the version's present decision."""
    review.put_in_airflow(settings, versions.get(settings, version))


def answer(settings: Settings, version: str, outcome: Outcome, *, by: str, comment: str) -> Answer:
    """Take an answer given in Airflow, unless another place was first, and do what the one that counts says.

    Airflow's request is closed by it, and nobody is asked there again. So an approval that does not hold any more, as
    the champion changed since the version was compared with it, settles the review too: the champion stays.

    Raises:
        PromotionRefusedError: the champion changed between the answer and its move.
    """
    given = review.settle(settings, version)
    if given is None:
        try:
            given = review.record(settings, version, outcome, by=by, via="airflow", comment=comment)
        except PromotionRefusedError as error:
            said = f"{by} approved it in Airflow ({comment[:1000]}), too late: {error}"
            given = review.record(settings, version, "rejected", by="rule:overtaken", via="overtaken", comment=said)
    review.carry_out(settings, version)
    return given


def carry_out(settings: Settings, version: str) -> bool:
    """Do what the answer says, if it is not done; whether the alias moved just now.

    Raises:
        PromotionRefusedError: the champion changed since the version was compared with it.
    """
    return review.carry_out(settings, version)


def version_page(settings: Settings, version: str) -> str:
    """Where the MLflow UI shows the version."""
    return f"{tracking.ui(settings)}/#/models/{settings.registry.model_name}/versions/{version}"


def summary(decision: dict[str, Any]) -> str:
    """One line on a decision: what it says and why."""
    value = PromotionDecision.model_validate(decision)
    return f"{decisions.outcome(value)}: {'; '.join(value.reasons)}"


def _table(version: ModelVersion) -> str:
    models = [name for name in ("challenger", "champion", "popularity") if _figures(version, name)]
    metrics = sorted(_figures(version, "challenger"))
    if not metrics:
        return ""
    rows = ["| metric | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for metric in metrics:
        figures = [_figures(version, model).get(metric) for model in models]
        rows.append(f"| {metric} | " + " | ".join("–" if one is None else f"{one:.4f}" for one in figures) + " |")
    return "\n".join(rows)


def _figures(version: ModelVersion, model: str) -> dict[str, float]:
    start = f"{model}."
    return {name.removeprefix(start): value for name, value in version.metrics.items() if name.startswith(start)}


def _lines(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    more = [f"… and {len(lines) - MAX_LINES} more, see the dossier"] if len(lines) > MAX_LINES else []
    return f"**{title}**\n\n" + "\n".join(f"- {_plain(line)}" for line in lines[:MAX_LINES] + more)


def _plain(text: str) -> str:
    """A text that Markdown shows as it is, on one line: the name of a slice comes from the users' data."""
    return re.sub(r"([\\`*_\[\]<>|~&#]|:(?=//))", r"\\\1", " ".join(text.split()))


def _deadline(version: ModelVersion) -> str:
    if review.DEADLINE not in version.tags:
        return ""
    moment = datetime.fromisoformat(version.tags[review.DEADLINE])
    comes_to = "it is promoted" if version.tags.get(review.DEFAULT) == "promote" else "the champion stays"
    return f"Without an answer by {moment:%Y-%m-%d %H:%M} UTC {comes_to}."


def _champion(version: ModelVersion) -> str:
    compared = version.tags.get("compared_with", "none")
    return "no champion, there was none before" if compared == "none" else f"champion version {compared}"
