"""Owns the step from lists of items to the evaluation report: every model, the same users, the same events."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import numpy as np
import polars as pl

from evensong.evaluation import metrics
from evensong.types import CATEGORY_SEPARATOR, EvaluationReport, Frame, ModelReport

#: Columns of the per-user figures that say who a user is, and not how a model did.
NO_METRIC = ("slice_", "covariate_")


def per_user(
    model: str, lists: Frame, targets: Frame, slices: Frame, items: Frame, tastes: Frame, *, recall_k: int, ndcg_k: int
) -> Frame:
    """One row a judged user: `model, user_id`, one column a metric, one boolean column a slice, and the other columns
    of `slices` as they are.

    Args:
        model: the name in the report.
        lists: `user_id, rank, item_id`, up to the longer k.
        targets: `user_id, item_id`; every user of `slices` has at least one.
        slices: from `slices.assign`; its users are judged, in its order.
        items: `item_id, item_events_30d, category_path`, the catalogue.
        tastes: `user_id, top_categories, top_category_shares` before the window, of every user of `slices`.
        recall_k: length of the list for recall and hit rate.
        ndcg_k: length of the list for NDCG.
    """
    width = max(recall_k, ndcg_k)
    user_ids = slices["user_id"].to_list()
    hits_UK, num_targets_U = metrics.hits(lists, targets, user_ids, width)
    figures = {
        f"recall_at_{recall_k}": metrics.recall_at_k(hits_UK, num_targets_U, recall_k),
        f"ndcg_at_{ndcg_k}": metrics.ndcg_at_k(hits_UK, num_targets_U, ndcg_k),
        f"hit_rate_at_{recall_k}": metrics.hit_rate_at_k(hits_UK, recall_k),
        "mrr": metrics.mrr(hits_UK),
        "novelty": metrics.novelty(_shares(lists, user_ids, items, recall_k)),
        "miscalibration": metrics.miscalibration(*_categories(lists, user_ids, items, tastes, recall_k)),
    }
    others = [name for name in slices.columns if name != "user_id"]
    return slices.select(
        pl.lit(model).alias("model"), "user_id", *(pl.Series(n, v) for n, v in figures.items()), *others
    )


def model_report(model: str, rows: Frame, lists: Frame, catalogue_size: int, recall_k: int) -> ModelReport:
    """Means over the users of `per_user`'s rows, of all and of each slice, with coverage."""
    names = [name for name in rows.columns if name not in ("model", "user_id") and not name.startswith(NO_METRIC)]
    judged = lists.filter(pl.col("rank") <= recall_k).join(rows.select("user_id"), on="user_id", how="semi")
    means = _means(rows, names) | {"coverage": metrics.coverage(judged["item_id"].to_list(), catalogue_size)}
    slices = {}
    for column in rows.columns:
        if not column.startswith("slice_"):
            continue
        name, part = column.removeprefix("slice_"), rows.filter(pl.col(column))
        slices[name] = _means(part, names) | {"num_users": float(len(part))}
    return ModelReport(model=model, metrics=means, slices=slices)


def build(
    reports: Mapping[str, ModelReport],
    *,
    challenger: str,
    champion: str | None,
    champion_version: str | None,
    champion_train_cutoff: datetime | None,
    as_of: datetime,
    window_start: datetime,
    window_end: datetime,
    num_users: int,
    num_events: int,
    guardrails: Mapping[str, float],
    per_user_uri: str | None,
    slice_attributes: Mapping[str, int] | None = None,
) -> EvaluationReport:
    """Put the models' reports together; those that are neither challenger nor champion are baselines."""
    return EvaluationReport(
        as_of=as_of,
        window_start=window_start,
        window_end=window_end,
        num_users=num_users,
        num_events=num_events,
        challenger=reports[challenger],
        champion=reports[champion] if champion else None,
        champion_version=champion_version,
        champion_train_cutoff=champion_train_cutoff,
        baselines={name: report for name, report in reports.items() if name not in (challenger, champion)},
        guardrails=dict(guardrails),
        slice_attributes=dict(slice_attributes or {}),
        per_user_uri=per_user_uri,
    )


def _means(rows: Frame, names: list[str]) -> dict[str, float]:
    return {name: float(rows[name].to_numpy().mean()) for name in names} if len(rows) else {}


def _shares(lists: Frame, user_ids: list[str], items: Frame, k: int) -> metrics.Floats:
    """Each listed item's share of the last 30 days' events, one event added to each so that none is zero."""
    events = pl.col("item_events_30d").fill_null(0) + 1
    share = items.select("item_id", share=events / events.sum())
    users = pl.DataFrame({"user_id": user_ids}, schema={"user_id": pl.String}).with_row_index("row")
    listed = lists.filter(pl.col("rank") <= k).join(users, on="user_id").join(share, on="item_id", how="left")
    share_UK = np.full((len(user_ids), k), np.nan)
    share_UK[listed["row"].to_numpy(), listed["rank"].to_numpy() - 1] = listed["share"].to_numpy()
    return share_UK


def _categories(
    lists: Frame, user_ids: list[str], items: Frame, tastes: Frame, k: int
) -> tuple[metrics.Floats, metrics.Floats]:
    """Each user's taste over the broadest categories, and the shares of these in their list, in one order."""
    users = pl.DataFrame({"user_id": user_ids}, schema={"user_id": pl.String}).with_row_index("row")
    broadest = pl.col("category_path").str.split(CATEGORY_SEPARATOR).list.first()
    wanted = (
        users.join(tastes, on="user_id", how="left", maintain_order="left")
        .select("row", category="top_categories", share="top_category_shares")
        .explode("category", "share")
        .drop_nulls()
    )
    shown = (
        lists.filter(pl.col("rank") <= k)
        .join(users, on="user_id")
        .join(items.select("item_id", category=broadest), on="item_id", how="left")
        .with_columns(share=1 / pl.len().over("row"))
        .drop_nulls("category")
        .select("row", "category", "share")
    )
    names = pl.concat([wanted["category"], shown["category"]]).unique().sort().to_list()
    place = {name: number for number, name in enumerate(names)}
    found = []
    for part in (wanted, shown):
        share_UG = np.zeros((len(user_ids), len(names)))
        columns = np.array([place[name] for name in part["category"]], np.int64)
        np.add.at(share_UG, (part["row"].to_numpy(), columns), part["share"].cast(pl.Float64).to_numpy())
        found.append(share_UG)
    return found[0], found[1]
