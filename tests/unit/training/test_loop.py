"""The loop: AdamW as PyTorch has it, checkpoints that continue exactly, and a clear word when the loss is no number."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from evensong.training import loop
from evensong.training.checkpoints import Checkpoints
from evensong.training.loop import DivergedError
from evensong.training.optimizers import AdamW


def model() -> nn.Module:
    layer = nn.Linear(3, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, 0.2, 0.3]]))
        layer.bias.zero_()
    return layer


def losses(layer: nn.Module, epoch: int) -> Iterator[Tensor]:
    generator = loop.generators(7, 1, epoch)[1]
    for _ in range(5):
        x = torch.randn(8, 3, generator=generator)
        yield ((layer(x)[:, 0] - x.sum(1)) ** 2).mean()


def run(layer: nn.Module, epochs: int, **keywords: object) -> list[float]:
    return loop.fit(
        layer,
        lambda epoch: losses(layer, epoch),
        name="toy",
        num_epochs=epochs,
        steps_per_epoch=5,
        learning_rate=0.05,
        **keywords,  # type: ignore[arg-type]
    )


def test_adamw_moves_as_pytorchs_does() -> None:
    ours, theirs = model(), model()
    optimizer = AdamW(ours.parameters(), weight_decay=0.1)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.03, weight_decay=0.1)
    for epoch in range(3):
        for left, right in zip(losses(ours, epoch), losses(theirs, epoch), strict=True):
            optimizer.zero_grad()
            reference.zero_grad()
            left.backward()
            right.backward()
            optimizer.step(0.03)
            reference.step()
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_the_loss_falls() -> None:
    means = run(model(), 6)
    assert means[-1] < 0.5 * means[0]


class Killed(Exception):
    pass


def test_a_killed_run_continues_to_the_very_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole = model()
    run(whole, 4)

    def stop(epoch: int) -> None:
        if epoch == 2:
            raise Killed

    checkpoints = Checkpoints(str(tmp_path / "toy.safetensors"), "same")
    with pytest.raises(Killed):
        run(model(), 4, checkpoints=checkpoints, after_epoch=stop)
    continued = model()
    assert len(run(continued, 4, checkpoints=checkpoints)) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), continued.parameters(), strict=True))


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path: Path) -> None:
    uri = str(tmp_path / "toy.safetensors")
    run(model(), 2, checkpoints=Checkpoints(uri, "one"))
    assert len(run(model(), 2, checkpoints=Checkpoints(uri, "other"))) == 2


def test_a_loss_that_is_no_number_stops_with_where_and_what_to_do() -> None:
    layer = model()

    def diverging(epoch: int) -> Iterator[Tensor]:
        yield from losses(layer, epoch)
        yield layer(torch.full((1, 3), float("nan"))).sum()

    with pytest.raises(DivergedError, match=r"toy.*epoch 1, step 6.*learning_rate"):
        loop.fit(layer, diverging, name="toy", num_epochs=1, steps_per_epoch=6, learning_rate=0.05)


def test_threads_are_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    with loop.fixed_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_streams_of_a_seed_differ_and_repeat() -> None:
    draws = [loop.generators(1, stream)[0].integers(1 << 40) for stream in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]
