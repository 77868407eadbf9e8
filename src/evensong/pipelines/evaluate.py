"""The step that judges the whole funnel beside popularity and the champion, on the same users and events."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from evensong.data import storage
from evensong.data.lake import Lake
from evensong.errors import BundleError
from evensong.evaluation import report, slices
from evensong.features import filtering
from evensong.models.inputs import encode_items
from evensong.models.popularity import Popularity
from evensong.models.saved import TowerWeights
from evensong.pipelines import train
from evensong.recommender.funnel import SCHEMA, Recommender
from evensong.retrieval.faiss_index import ItemIndex
from evensong.settings import IndexSettings, Settings
from evensong.types import Frame, Night

log = logging.getLogger(__name__)

CHALLENGER = "challenger"
POPULARITY = "popularity"
ITEM_KNN = "item_knn"
#: What is known of a user before the window and goes with how easy they are to serve.
COVARIATES = ("num_interactions", "num_events_7d")
#: Before the name of a slice attribute that belongs to the items.
OF_ITEMS = "item."


def run(
    settings: Settings,
    night: Night,
    training_set_uri: str,
    retriever_uri: str,
    ranker_uri: str,
    index_uri: str,
    against: str | None = None,
) -> str:
    """Recommend to every held-out user at the holdout's start and compare with what they wanted after it.

    Writes `per_user.parquet` and `evaluation.json`, an `EvaluationReport`, and returns the latter's URI. No model is
    judged on what it was trained on: a champion whose refit reaches into the holdout is judged by its weights of
    before the refit, as the challenger is; where those are not kept, only events after its `train_cutoff` count.
    `against` names the version to compare with, or `none`, where a night is made again; else it is `recipe.rival`.

    Raises:
        BundleError: the champion, of the same night, has learned every held-out day.
    """
    start = train.cutoff_of(settings, night, final=False)
    items = train.read_items(training_set_uri, final=False)
    popularity = popular(settings, training_set_uri, items, start, final=False)
    with tempfile.TemporaryDirectory() as folder:
        retriever = storage.fetch_folder(retriever_uri, Path(folder, "retriever"))
        index = storage.fetch_folder(index_uri, Path(folder, "index"))
        ranker = storage.fetch_folder(ranker_uri, Path(folder, "ranker"))
        challenger = Recommender.of_parts(retriever, ranker, index, popularity)
        exact = None
        if not challenger.is_exact:
            exact_index = _exact_index(train.towers(settings, retriever), items, Path(folder, "exact"))
            exact = Recommender.of_parts(retriever, ranker, exact_index, popularity)
        guardrails = {"index_recall": float(json.loads((index / "index.json").read_bytes())["index_recall"])}
    champion, version, cutoff = _champion(settings, night, start, against)
    window_start = max(start, cutoff) if cutoff else start
    users, targets = judged(settings, night, training_set_uri, window_start)
    hidden = excluded(users, settings.serving.filter)
    k = max(settings.evaluation.recall_k, settings.evaluation.ndcg_k)
    lists = {CHALLENGER: _ask(challenger, users, items, start, k, hidden)}
    name = f"champion v{version}"
    if champion is not None:
        lists[name] = _ask(champion, users, items, start, k, hidden)
    lists[POPULARITY] = popular_lists(popularity, users["user_id"].to_list(), k, hidden)
    lists[ITEM_KNN] = _neighbours(training_set_uri, items, users["user_id"].to_list(), k, hidden, popularity)

    sizes = {"recall_k": settings.evaluation.recall_k, "ndcg_k": settings.evaluation.ndcg_k}
    assigned = slices.assign(users, targets, items, start)
    slice_attributes: dict[str, int] = {}
    for attribute in dict.fromkeys(settings.evaluation.slice_attributes):
        values, slice_attributes[attribute] = _values_of(settings, attribute, targets, start, night.as_of)
        column = slices.by_attribute(users, attribute, values)
        assigned = assigned.join(column, on="user_id", how="left", maintain_order="left")
    known = users.select("user_id", *covariates())
    assigned = assigned.join(known, on="user_id", how="left", maintain_order="left")
    rows = {
        model: report.per_user(model, found, targets, assigned, items, users, **sizes) for model, found in lists.items()
    }
    reports = {
        model: report.model_report(model, rows[model], found, len(items), settings.evaluation.recall_k)
        for model, found in lists.items()
    }
    if exact is None:
        guardrails["exact_index_gain"] = 0.0
    else:
        best = _ask(exact, users, items, start, k, hidden)
        metric = f"recall_at_{settings.evaluation.recall_k}"
        figures = report.per_user(CHALLENGER, best, targets, assigned, items, users, **sizes)[metric]
        guardrails["exact_index_gain"] = float((figures - rows[CHALLENGER][metric]).to_numpy().mean())
    per_user_uri = storage.write_frame(settings.run_uri(night.run_id, "per_user.parquet"), pl.concat(rows.values()))
    result = report.build(
        reports,
        challenger=CHALLENGER,
        champion=name if champion is not None else None,
        champion_version=version,
        champion_train_cutoff=cutoff,
        as_of=night.as_of,
        window_start=window_start,
        window_end=night.as_of,
        num_users=len(users),
        num_events=len(targets),
        guardrails=guardrails,
        slice_attributes=slice_attributes,
        per_user_uri=per_user_uri,
    )
    for model, found in reports.items():
        log.info("%s on %d users: %s", model, len(users), {n: round(v, 4) for n, v in found.metrics.items()})
    return storage.write_json(settings.run_uri(night.run_id, "evaluation.json"), result.model_dump(mode="json"))


def popular(settings: Settings, training_set_uri: str, items: Frame, cutoff: datetime, final: bool) -> Popularity:
    """The popularity model at the cutoff: baseline of the evaluation, fallback of the bundle."""
    uri = storage.join(training_set_uri, "examples.parquet")
    labels = pl.scan_parquet(uri, storage_options=storage.storage_options(uri))
    labels = labels if final else labels.filter(pl.col("part") != "holdout")
    positives = labels.select("item_id", "event_timestamp").collect()
    return Popularity.fit(positives, items["item_id"].to_list(), cutoff, settings.evaluation.popularity_days)


def _neighbours(
    training_set_uri: str,
    items: Frame,
    user_ids: list[str],
    k: int,
    hidden: dict[str, Collection[str]],
    fallback: Popularity,
) -> Frame:
    """What item-kNN, learned from the same labels, answers each user, in the funnel's form."""
    from evensong.models.item_knn import ItemKnn

    uri = storage.join(training_set_uri, "examples.parquet")
    labels = pl.scan_parquet(uri, storage_options=storage.storage_options(uri)).filter(pl.col("part") != "holdout")
    model = ItemKnn.fit(labels.select("user_id", "item_id").collect(), items["item_id"].to_list())
    rows = [(*row, ITEM_KNN) for row in model.lists(user_ids, k, hidden, fallback)]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _exact_index(towers: TowerWeights, items: Frame, folder: Path) -> Path:
    """The same items, searched exactly and with every digit of their vectors."""
    vectors_ND = towers.forward().items(encode_items(items, towers.vocabularies))
    index = ItemIndex.build(vectors_ND, items["item_id"].to_list(), IndexSettings(kind="flat"))
    index.save(folder, index_recall=1.0)
    return folder


def _values_of(settings: Settings, name: str, targets: Frame, start: datetime, as_of: datetime) -> tuple[Frame, int]:
    """`user_id, value` of an attribute, and how many users or items have one, judged or not.

    `item.brand` is the attribute `brand` of the items that a user wanted; these may have come after the training's end.
    """
    lake, of_items = Lake(settings.lake), name.startswith(OF_ITEMS)
    newest, key = (lake.current_items(as_of), "item_id") if of_items else (lake.current_users(start), "user_id")
    texts = newest["attributes"].to_list()
    value = pl.Series("value", [_attribute(text, name.removeprefix(OF_ITEMS)) for text in texts], pl.String)
    values = newest.select(key, value).drop_nulls("value")
    return (targets.join(values, on=key).select("user_id", "value") if of_items else values), len(values)


def covariates() -> list[pl.Expr]:
    """`covariate_<name>` of a user's features: logarithms, since a hundredth event says less than a second."""
    return [pl.col(name).fill_null(0).log1p().alias(f"covariate_{name}") for name in COVARIATES]


def _attribute(text: str | None, name: str) -> str | None:
    value = json.loads(text or "{}").get(name)
    return None if value is None else str(value)


def popular_lists(popularity: Popularity, user_ids: list[str], k: int, hidden: dict[str, Collection[str]]) -> Frame:
    """What popularity alone answers each user, in the funnel's form."""
    rows = [
        (user_id, rank, item_id, score, POPULARITY)
        for user_id in user_ids
        for rank, (item_id, score) in enumerate(popularity.top(k, hidden[user_id]), 1)
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def excluded(users: Frame, rule: str) -> dict[str, Collection[str]]:
    """What the filter rule hides from each user."""
    return filtering.hidden(users, rule)


def covariate_means(settings: Settings, training_set_uri: str, window_start: datetime) -> dict[str, float]:
    """The covariates' means over everybody who could have been judged; none where everybody was, so nothing is known.

    Where users were drawn, the difference between their means and these is chance, and the gate takes it out of the
    gain.
    """
    users, _ = _eligible(training_set_uri, window_start)
    if len(users) <= settings.evaluation.max_users:
        return {}
    means = users.select(covariates()).mean().row(0, named=True)
    return {name.removeprefix("covariate_"): float(mean) for name, mean in means.items()}


def _eligible(training_set_uri: str, window_start: datetime) -> tuple[Frame, Frame]:
    """The users with a target in the window, by id, and the targets."""
    targets = storage.read_frame(storage.join(training_set_uri, "targets.parquet"))
    targets = targets.filter(pl.col("event_timestamp") > window_start).unique(
        ["user_id", "item_id"], keep="first", maintain_order=True
    )
    users = storage.read_frame(storage.join(training_set_uri, "users_holdout.parquet")).sort("user_id")
    return users.join(targets, on="user_id", how="semi", maintain_order="left"), targets


def judged(settings: Settings, night: Night, training_set_uri: str, window_start: datetime) -> tuple[Frame, Frame]:
    """The users with a target in the window, drawn by seed when there are too many, and their targets."""
    users, targets = _eligible(training_set_uri, window_start)
    if len(users) > settings.evaluation.max_users:
        rng = np.random.default_rng([night.seed, 6])
        users = users[np.sort(rng.choice(len(users), settings.evaluation.max_users, replace=False))]
    return users, targets.join(users, on="user_id", how="semi", maintain_order="left")


def _ask(
    recommender: Recommender, users: Frame, items: Frame, now: datetime, k: int, hidden: dict[str, Collection[str]]
) -> Frame:
    return recommender.recommend(users, recommender.prepare_items(items), now=now, k=k, exclude=hidden)


def _champion(
    settings: Settings, night: Night, start: datetime, against: str | None
) -> tuple[Recommender | None, str | None, datetime | None]:
    """The champion that the night is compared with, its version, and the moment up to which it learned."""
    from evensong.pipelines import recipe
    from evensong.registry import versions

    if against is None:
        version = recipe.rival(settings, night)
    else:
        version = None if against == "none" else versions.get(settings, against)
    if version is None or not version.has_bundle:
        return None, None, None
    directory, cutoff = train.champion_models(settings, version.version, start)
    if cutoff >= night.as_of:
        raise BundleError(
            f"version {version.version}: expected the models that were judged beside it, since its refit learned every "
            "held-out day; they were not kept, so no other run of its night can be compared with it: run the next one"
        )
    return Recommender.load(directory), version.version, cutoff
