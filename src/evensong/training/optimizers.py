"""Owns the optimizer: AdamW in a few lines.

`torch.optim` imports PyTorch's compiler, which takes four seconds of CPU in each task that trains, longer than training
a small shop. The update is the same (tested against it).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019, algorithm 2)."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = list(parameters)
        self.weight_decay, self.betas, self.eps = weight_decay, betas, eps
        self.step_count = 0
        self._means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move every parameter that has a gradient."""
        self.step_count += 1
        first, second = self.betas
        correction = 1 - first**self.step_count
        scale = (1 - second**self.step_count) ** 0.5
        for parameter, mean, square in zip(self.parameters, self._means, self._squares, strict=True):
            if parameter.grad is None:
                continue
            parameter.mul_(1 - learning_rate * self.weight_decay)
            mean.lerp_(parameter.grad, 1 - first)
            square.mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
            parameter.addcdiv_(mean, (square.sqrt() / scale).add_(self.eps), value=-learning_rate / correction)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, beside the parameters."""
        named = {"step_count": torch.tensor(self.step_count)}
        for index, (mean, square) in enumerate(zip(self._means, self._squares, strict=True)):
            named |= {f"mean.{index}": mean, f"square.{index}": square}
        return named

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self.step_count = int(state["step_count"])
        for index in range(len(self.parameters)):
            self._means[index].copy_(state[f"mean.{index}"])
            self._squares[index].copy_(state[f"square.{index}"])
