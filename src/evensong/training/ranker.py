"""Owns how the ranker learns: from slates, beginning as popularity, keeping the epoch that fits unseen users best.

Legend: S slates, K places of a slate, F features.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evensong.models.config import RankerConfig
from evensong.models.ranker import Ranker
from evensong.models.saved import RankerWeights, TowerWeights
from evensong.settings import Settings
from evensong.training import loop, losses, retriever, slates
from evensong.training.slates import Anchors, Catalogue, ItemJoin, Slates
from evensong.types import Frame

VALIDATION_SHARE = 0.2
MIN_STEPS = 64
WEIGHT_DECAY = 0.01


def slates_of(
    examples: Frame,
    items: Frame,
    base: TowerWeights,
    join: ItemJoin,
    start: datetime,
    settings: Settings,
    *,
    seed: int,
) -> Slates:
    """The slates of the labels from `start` on, the newest `ranker.max_slates` of them.

    Args:
        examples: all labels that may be learned from.
        items: the catalogue, by id.
        base: a retriever that learned from labels before `start` alone.
        join: item features at each row's moment.
        start: where the ranker's labels begin.
        settings: candidates, negatives, the filter rule.
        seed: of the negatives.
    """
    towers = base.forward()
    catalogue = Catalogue.of(items, towers, base.vocabularies)
    data = retriever.prepare(examples, items, base.vocabularies, hide_seen=settings.serving.filter == "seen")
    chosen = np.flatnonzero(data.seconds_R >= start.timestamp())
    chosen = np.sort(chosen[np.argsort(data.seconds_R[chosen], kind="stable")][-settings.ranker.max_slates :])
    anchors = Anchors(data.users.take(chosen), data.user_R[chosen], data.item_R[chosen], data.seconds_R[chosen])
    return slates.build(
        anchors,
        catalogue,
        towers,
        data.positives,
        slates.DailyPopularity(examples, catalogue.item_ids, settings.evaluation.popularity_days),
        join,
        num_candidates=settings.retriever.num_candidates,
        num_popular=settings.retriever.num_popular_candidates,
        num_negatives=settings.ranker.num_negatives,
        rng=loop.generators(seed, 5)[0],
    )


def train(lessons: Slates, settings: Settings, *, seed: int) -> tuple[RankerWeights, list[float]]:
    """Train on the slates of most users and keep the epoch with the lowest loss on those of the others.

    The start counts as an epoch, so with too little to learn from the ranker stays what popularity says.

    Returns:
        The weights, and the validation loss at the start and after each epoch.
    """
    config = fit_config(lessons, settings)
    with loop.fixed_threads(settings.training.num_threads):
        model = Ranker(config, loop.generators(seed, 2)[1])
        train_S, check_S = _split(lessons, seed)
        best = {"loss": _loss(model, lessons, check_S), "epoch": -1}
        tensors = _tensors(model)
        history = [best["loss"]]

        def keep_best(epoch: int) -> None:
            nonlocal tensors
            loss = _loss(model, lessons, check_S)
            history.append(loss)
            if loss < best["loss"]:
                best.update(loss=loss, epoch=epoch)
                tensors = _tensors(model)

        batch_size = min(settings.ranker.batch_size, max(16, len(train_S) // MIN_STEPS))
        if len(train_S) and len(check_S):
            loop.fit(
                model,
                lambda epoch: _epoch(model, lessons, train_S, batch_size, seed, epoch),
                name="ranker",
                num_epochs=settings.ranker.epochs,
                steps_per_epoch=-(-len(train_S) // batch_size),
                learning_rate=settings.ranker.learning_rate,
                weight_decay=WEIGHT_DECAY,
                after_epoch=keep_best,
            )
    return RankerWeights(config, tensors), history


def fit_config(lessons: Slates, settings: Settings) -> RankerConfig:
    """The statistics of the features over all candidates of all slates."""
    num_features = len(lessons.features)
    present = lessons.features_SKF[~lessons.absent_SK][:, :num_features].astype(np.float64)
    mean = present.mean(0) if len(present) else np.zeros(num_features)
    std = present.std(0) if len(present) else np.ones(num_features)
    std = np.where(std < 1e-4, 1.0, std)
    return RankerConfig(
        features=lessons.features,
        crosses=lessons.crosses,
        num_buckets=lessons.num_buckets,
        hidden=settings.ranker.hidden,
        mean=tuple(map(float, mean)),
        std=tuple(map(float, std)),
        num_candidates=settings.retriever.num_candidates,
        num_popular_candidates=settings.retriever.num_popular_candidates,
    )


def _split(lessons: Slates, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    groups = np.unique(lessons.group_S)
    rng = loop.generators(seed, 3)[0]
    chosen = rng.permutation(groups)[: int(len(groups) * VALIDATION_SHARE)]
    check_S = np.isin(lessons.group_S, chosen)
    return np.flatnonzero(~check_S), np.flatnonzero(check_S)


def _epoch(
    model: Ranker, lessons: Slates, rows: NDArray[np.int64], batch_size: int, seed: int, epoch: int
) -> Iterator[Tensor]:
    order = loop.generators(seed, 4, epoch)[0].permutation(rows)
    for start in range(0, len(order), batch_size):
        yield _slate_losses(model, lessons, order[start : start + batch_size]).mean()


def _loss(model: Ranker, lessons: Slates, rows: NDArray[np.int64]) -> float:
    if len(rows) == 0:
        return float("inf")
    with torch.no_grad():
        parts = [_slate_losses(model, lessons, rows[start : start + 4096]) for start in range(0, len(rows), 4096)]
    return float(torch.cat(parts).mean())


def _slate_losses(model: Ranker, lessons: Slates, rows: NDArray[np.int64]) -> Tensor:
    return losses.listwise_softmax(
        model(torch.from_numpy(lessons.features_SKF[rows])),
        torch.from_numpy(lessons.log_inclusion_SK[rows]),
        torch.from_numpy(lessons.absent_SK[rows]),
    )


def _tensors(model: Ranker) -> dict[str, NDArray[np.float32]]:
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
