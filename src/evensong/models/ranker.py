"""Owns the ranker as PyTorch trains it: a linear part that begins as popularity, plus a network that begins at zero.

Legend: S slates, K candidates of a slate, F features.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from evensong.models.config import RankerConfig


class Ranker(nn.Module):
    """Scores candidates from their features; before the first step the score is log(1 + events of the last 30 days).

    Each cross of pairs adds the weight of the pair's bucket (the wide part of Cheng et al., 2016, Wide & Deep).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: RankerConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.mean))
        self.register_buffer("std", torch.tensor(config.std))
        self.linear = nn.Linear(len(config.features), 1, bias=False)
        sizes = [len(config.features), *config.hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(sizes[-1], 1, bias=False)
        self.pairs = nn.ModuleList(nn.Embedding(size, 1) for size in config.num_buckets)
        with torch.no_grad():
            for layer in self.layers:
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)  # type: ignore[arg-type]
                layer.bias.zero_()  # type: ignore[operator]
            self.out.weight.zero_()
            for pair in self.pairs:
                pair.weight.zero_()  # type: ignore[operator]
            self.linear.weight.zero_()
            popularity = config.features.index("log_item_events_30d")
            self.linear.weight[0, popularity] = config.std[popularity]

    def forward(self, features_SKF: Tensor) -> Tensor:
        """Scores (S, K)."""
        num_features = len(self.config.features)
        buckets_SKX = features_SKF[..., num_features:].long()
        scaled = (features_SKF[..., :num_features] - self.mean) / self.std
        hidden = scaled.clamp(-5, 5)
        for layer in self.layers:
            hidden = layer(hidden).relu()
        scores = (self.linear(scaled) + self.out(hidden)).squeeze(-1)
        for place, pair in enumerate(self.pairs):
            scores = scores + pair(buckets_SKX[..., place]).squeeze(-1)
        return scores
