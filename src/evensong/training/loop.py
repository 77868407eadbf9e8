"""Owns the loop: epochs of steps with AdamW, the same on every run, stopped at the first loss that is no number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evensong.errors import EvensongError
from evensong.training.checkpoints import Checkpoints
from evensong.training.optimizers import AdamW


class DivergedError(EvensongError):
    """The loss or a gradient is no number any more."""


@contextmanager
def fixed_threads(num_threads: int) -> Iterator[None]:
    """A fixed number of threads: sums have one order, so the same night gives the same bytes.

    All kernels of our models are deterministic on the CPU (a test trains twice and compares bytes), so PyTorch's switch
    for that is left alone: it imports the compiler, which takes five seconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def generators(seed: int, *stream: int) -> tuple[np.random.Generator, torch.Generator]:
    """The randomness of one stream (such as one epoch) of a seed, for numpy and for torch."""
    sequence = np.random.SeedSequence([seed, *stream])
    torch_seed = int(sequence.generate_state(1, np.uint64)[0] >> 1)
    return np.random.default_rng(sequence), torch.Generator().manual_seed(torch_seed)


def fit(
    model: nn.Module,
    epoch_losses: Callable[[int], Iterator[Tensor]],
    *,
    name: str,
    num_epochs: int,
    steps_per_epoch: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    checkpoints: Checkpoints | None = None,
    after_epoch: Callable[[int], Any] | None = None,
) -> list[float]:
    """Train and return the mean loss of each epoch that ran.

    Args:
        model: trained in place.
        epoch_losses: given the epoch, yields the loss of each step; all its randomness must follow from the epoch.
        name: what is trained, for messages.
        num_epochs: passes over the data.
        steps_per_epoch: steps of one pass, for the schedule (a short warm-up, then a cosine to a tenth).
        learning_rate: the highest one.
        weight_decay: AdamW's.
        checkpoints: where the state goes after each epoch, and where a killed run continues from.
        after_epoch: called after each epoch, such as to measure.

    Raises:
        DivergedError: a loss or gradient is NaN or infinite.
    """
    optimizer = AdamW(model.parameters(), weight_decay)
    total = num_epochs * steps_per_epoch
    first = checkpoints.load(model, optimizer) if checkpoints else 0
    means = []
    for epoch in range(first, num_epochs):
        losses = []
        for step, loss in enumerate(epoch_losses(epoch)):
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
                raise DivergedError(
                    f"{name}: expected a finite loss, got {loss.item()} (gradient norm {norm.item()}) in epoch "
                    f"{epoch + 1}, step {step + 1}; lower its learning_rate (now {learning_rate}) or raise temperature"
                )
            optimizer.step(learning_rate * _schedule(epoch * steps_per_epoch + step, total))
            losses.append(loss.item())
        means.append(float(np.mean(losses)))
        if after_epoch:
            after_epoch(epoch)
        if checkpoints:
            checkpoints.save(epoch + 1, model, optimizer)
    return means


def _schedule(step: int, total: int) -> float:
    warm = max(1, min(100, total // 20))
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
