"""Owns how the two-tower retriever learns: its data, its steps, and where its first weights come from.

Legend: B rows of a step, U items of its pool, N items of the catalogue, R labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from evensong.errors import NothingToLearnError
from evensong.models import inputs as model_inputs
from evensong.models.config import TwoTowerConfig
from evensong.models.inputs import ItemInputs, UserInputs, Vocabularies
from evensong.models.saved import TowerWeights
from evensong.models.two_tower import TwoTower, item_tensors, tables, user_tensors
from evensong.settings import RetrieverSettings
from evensong.training import loop, losses, sampling
from evensong.training.checkpoints import Checkpoints
from evensong.types import Frame

#: Parameters whose meaning hangs on the declared columns.
_READ_COLUMNS = {"user_columns", "item_columns", "user_in", "content_in"}
MIN_STEPS = 128
POOL_DROPOUT = 0.1


@dataclass(frozen=True)
class RetrieverData:
    """Labels as arrays: who, what, when, and what the user tower reads at that moment."""

    users: UserInputs
    user_R: NDArray[np.int64]
    item_R: NDArray[np.int64]
    """Catalogue rows of the positives."""
    seconds_R: NDArray[np.float64]
    items: ItemInputs
    """The catalogue."""
    arrival_N: NDArray[np.float64]
    """When each item came, unix seconds; minus infinity when unknown."""
    positives: sampling.UserPositives

    def __len__(self) -> int:
        return len(self.item_R)


def prepare(examples: Frame, items: Frame, vocabularies: Vocabularies, hide_seen: bool = True) -> RetrieverData:
    """Encode labels and catalogue.

    Labels without history are left out (such users get the popular items), as are, with `hide_seen`, labels of an
    item that stands in the user's own history (the filter would never let it through), and labels of items that the
    catalogue does not hold.
    """
    row_of = {item_id: row for row, item_id in enumerate(items["item_id"].to_list())}
    item_R = examples["item_id"].replace_strict(row_of, default=-1, return_dtype=pl.Int64).to_numpy()
    user_R = examples["user_id"].rank("dense").cast(pl.Int64).to_numpy() - 1
    users = model_inputs.encode_users(examples, vocabularies)
    own_R = vocabularies.items.known(examples["item_id"])
    usable_R = users.has_history_B & (item_R >= 0)
    if hide_seen:
        usable_R &= ~((users.history_BL == own_R[:, None]).any(1) & (own_R > 0))
    known_R = item_R >= 0
    positives = sampling.UserPositives(user_R[known_R], item_R[known_R], int(user_R.max(initial=-1)) + 1)
    arrival = items["arrival_seconds"].cast(pl.Float64).fill_null(-np.inf).to_numpy()
    return RetrieverData(
        users=users.take(usable_R),
        user_R=user_R[usable_R],
        item_R=item_R[usable_R],
        seconds_R=model_inputs.seconds(examples, None)[usable_R],
        items=model_inputs.encode_items(items, vocabularies),
        arrival_N=arrival,
        positives=positives,
    )


def train(
    data: RetrieverData,
    vocabularies: Vocabularies,
    settings: RetrieverSettings,
    *,
    seed: int,
    num_threads: int,
    num_epochs: int | None = None,
    start: TowerWeights | None = None,
    checkpoints: Checkpoints | None = None,
    losses: list[float] | None = None,
) -> TowerWeights:
    """Train the towers on all of `data`.

    Args:
        data: from `prepare`, with the same vocabularies.
        vocabularies: the fitted state of the inputs.
        settings: the recipe.
        seed: of the weights, the order of the rows, the negatives and the dropped ids.
        num_threads: of PyTorch.
        num_epochs: in place of the recipe's.
        start: weights to continue from, mapped token by token; what they do not know begins as new items do.
        checkpoints: where the state goes after each epoch.
        losses: gets the mean loss of each epoch that ran.

    Raises:
        NothingToLearnError: no label has any history before it.
        DivergedError: the loss is no number.
    """
    if len(data) == 0:
        raise NothingToLearnError(
            "the retriever needs labels of users with some history before them, found none; "
            "take a later as_of or a longer training window"
        )
    config = TwoTowerConfig(dimension=settings.dimension, temperature=settings.temperature)
    with loop.fixed_threads(num_threads):
        model = TwoTower(config, vocabularies, loop.generators(seed, 0)[1])
        model.fit_numeric(data.users)
        if start is not None:
            adopt(model, vocabularies, start)
        batch_size = min(settings.batch_size, max(64, len(data) // MIN_STEPS))
        means = loop.fit(
            model,
            lambda epoch: _epoch(model, data, settings, batch_size, seed, epoch),
            name="retriever",
            num_epochs=settings.epochs if num_epochs is None else num_epochs,
            steps_per_epoch=-(-len(data) // batch_size),
            learning_rate=settings.learning_rate,
            checkpoints=checkpoints,
        )
    if losses is not None:
        losses.extend(means)
    tensors = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    return TowerWeights(config, vocabularies, tensors)


def adopt(model: TwoTower, vocabularies: Vocabularies, start: TowerWeights) -> None:
    """Copy weights into a model: tables token by token, the rest where the shape is the same.

    An item without a row in `start` begins from the out-of-vocabulary row, which learned to be completed by content.
    What reads the declared columns is copied only where `start` read the very same fitted ones: another fit means other
    rows and other axes.
    """
    known = tables(start.vocabularies)
    same_columns = vocabularies.columns is start.vocabularies.columns
    state = model.state_dict()
    with torch.no_grad():
        for name, target in state.items():
            source = start.tensors.get(name)
            if source is None or source.shape[1:] != tuple(target.shape[1:]):
                continue
            if name.partition(".")[0] in _READ_COLUMNS and not same_columns and vocabularies.columns.has_any:
                continue
            if name in known:
                here, there = tables(vocabularies)[name].rows_of(known[name])
                if name == "item_id.weight":
                    target[2:] = torch.from_numpy(source[1].copy())
                target[torch.from_numpy(here)] = torch.from_numpy(source[there])
            elif source.shape == tuple(target.shape):
                target.copy_(torch.from_numpy(source.copy()))


def _epoch(
    model: TwoTower, data: RetrieverData, settings: RetrieverSettings, batch_size: int, seed: int, epoch: int
) -> Iterator[Tensor]:
    rng, generator = loop.generators(seed, 1, epoch)
    share_N = np.bincount(data.item_R, minlength=len(data.items)) / len(data)
    order_R = rng.permutation(len(data))
    for start in range(0, len(order_R), batch_size):
        rows_B = order_R[start : start + batch_size]
        pool = sampling.draw_pool(data.item_R[rows_B], share_N, settings.num_uniform_negatives, rng)
        masked_BU = data.positives.mask(data.user_R[rows_B], pool)
        arrival_U, seconds_B = data.arrival_N[pool.items_U], data.seconds_R[rows_B]
        if arrival_U.max() > seconds_B.min():
            # an item that had not arrived was not declined
            masked_BU |= arrival_U[None, :] > seconds_B[:, None]
        drop_U = torch.rand(len(pool.items_U), generator=generator) < settings.id_dropout
        keep_BP = torch.rand(len(rows_B), model.pooled.in_features, generator=generator) >= POOL_DROPOUT
        items_UD = model.items(item_tensors(data.items, pool.items_U), drop_U)
        users_BD = model.users(user_tensors(data.users, rows_B), keep_BP / (1 - POOL_DROPOUT))
        yield losses.corrected_softmax(
            (users_BD / settings.temperature) @ items_UD.T,
            torch.from_numpy(pool.column_N[data.item_R[rows_B]]),
            torch.from_numpy(pool.log_inclusion_U),
            torch.from_numpy(masked_BU),
        ).mean()
