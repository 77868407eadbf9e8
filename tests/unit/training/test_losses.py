"""The corrected softmax recovers the true conditional; without the correction, or with the wrong sign, it does not."""

import numpy as np
import pytest
import torch
from tests.variants import first_daily

from evensong.training.losses import corrected_softmax, listwise_softmax
from evensong.training.sampling import draw_pool

TRUTH = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])


def learned(sign: float, num_uniform: int, seed: int = 0) -> np.ndarray:
    """Learn one logit an item from labels drawn from `TRUTH`, with small pools; return the softmax of the logits.

    The toy has one kind of user, so the conditional that the softmax should recover is `TRUTH` itself. Fourteen rows a
    step are too few to see every item, so the correction is at work.
    """
    rng = np.random.default_rng(seed)
    logits = torch.zeros(len(TRUTH), requires_grad=True)
    average = torch.zeros(len(TRUTH))
    steps, batch = 2500, 8
    for step in range(steps):
        labels = rng.choice(len(TRUTH), batch, p=TRUTH)
        pool = draw_pool(labels, TRUTH, num_uniform, rng)
        rows = logits[torch.from_numpy(pool.items_U)].expand(batch, -1)
        positive = torch.from_numpy(pool.column_N[labels])
        loss = corrected_softmax(rows, positive, sign * torch.from_numpy(pool.log_inclusion_U)).mean()
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= 0.5 / (1 + step / 300) * gradient
            if step >= steps // 2:
                average += logits
    return torch.softmax(average / (steps - steps // 2), 0).numpy()


@pytest.mark.parametrize("num_uniform", first_daily([3, 0]))
def test_corrected_softmax_recovers_the_true_conditional(num_uniform: int) -> None:
    assert np.abs(learned(1.0, num_uniform) - TRUTH).max() < 0.03


@pytest.mark.parametrize("sign", [0.0, -1.0])
def test_without_the_correction_or_with_its_sign_turned_it_does_not(sign: float) -> None:
    assert np.abs(learned(sign, 0) - TRUTH).max() > 0.08


def test_a_pool_of_everything_is_the_full_softmax() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    positive = torch.tensor([0, 3, 5, 5])
    expected = torch.nn.functional.cross_entropy(logits, positive, reduction="none")
    assert torch.allclose(corrected_softmax(logits, positive, torch.zeros(6)), expected, atol=1e-6)


def test_a_masked_item_does_not_count_but_a_masked_positive_does() -> None:
    logits = torch.tensor([[1.0, 50.0, 0.0]])
    positive, nothing = torch.tensor([0]), torch.zeros(3)
    masked = torch.tensor([[True, True, False]])
    expected = torch.logsumexp(torch.tensor([1.0, 0.0]), 0) - 1.0
    assert corrected_softmax(logits, positive, nothing, masked).item() == pytest.approx(expected.item(), abs=1e-6)


def test_listwise_softmax_weighs_each_candidate_by_how_it_was_drawn() -> None:
    scores = torch.tensor([[1.0, 0.5, 0.5, 9.0]])
    drawn = torch.log(torch.tensor([[1.0, 0.25, 0.25, 0.25]]))
    absent = torch.tensor([[False, False, False, True]])
    expected = np.log(np.exp(1.0) + 2 * np.exp(0.5) / 0.25) - 1.0
    assert listwise_softmax(scores, drawn, absent).item() == pytest.approx(expected, abs=1e-6)
