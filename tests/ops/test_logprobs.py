"""Log-probs over the vocabulary and over an allowed subset."""

import math

import pytest
import torch

from rlkit.ops.logprobs import allowed_logprobs, entropy, log_distribution, pick, selected_logprobs


def test_a_chosen_token_of_a_known_distribution() -> None:
    # softmax(ln 1, ln 2, ln 5) = 1/8, 2/8, 5/8
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
    assert selected_logprobs(logits, torch.tensor([2])).item() == pytest.approx(math.log(5 / 8))
    # at temperature 1/2 the weights are squared: 1, 4, 25 of 30
    assert selected_logprobs(logits, torch.tensor([1]), 0.5).item() == pytest.approx(math.log(4 / 30))


def test_the_allowed_tokens_share_the_whole_probability() -> None:
    logits, mask = torch.tensor([[1.0, 2.0, 5.0]]).log(), torch.tensor([[1, 0, 1]])
    # without the second: 1/6 and 5/6
    assert allowed_logprobs(logits, mask, torch.tensor([0])).item() == pytest.approx(math.log(1 / 6))
    assert allowed_logprobs(logits, mask, torch.tensor([2])).item() == pytest.approx(math.log(5 / 6))
    expected = -(1 / 6 * math.log(1 / 6) + 5 / 6 * math.log(5 / 6))
    assert entropy(log_distribution(logits, mask)).item() == pytest.approx(expected)


def test_everything_allowed_is_the_whole_vocabulary() -> None:
    logits, tokens = torch.randn(4, 7), torch.tensor([0, 3, 6, 2])
    allowed = allowed_logprobs(logits, torch.ones(4, 7), tokens, 1.3)
    torch.testing.assert_close(allowed, selected_logprobs(logits, tokens, 1.3))


def test_a_single_child_is_certain() -> None:
    logprobs = log_distribution(torch.tensor([[3.0, -2.0]]), torch.tensor([[0, 1]]))
    assert pick(logprobs, torch.tensor([1])).item() == 0.0
    assert entropy(logprobs).item() == 0.0


def test_masks_leave_no_nan_in_gradients() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf], [0.5, 0.1, 0.3]], requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])  # a masked -inf, and a position without any child
    logprobs = log_distribution(logits, mask)
    total = pick(logprobs, torch.tensor([1, 0])).sum() + entropy(logprobs).sum()
    total.backward()
    assert logits.grad is not None
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1].tolist() == [0.0, 0.0, 0.0]
    assert logits.grad[0, 2] == 0.0
    assert logits.grad[0, 0] != 0.0


def test_bfloat16_logits_give_float32_log_probs() -> None:
    logits = torch.randn(3, 9).bfloat16()
    logprobs = log_distribution(logits)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(3))


def test_tokens_of_one_distribution_share_its_row() -> None:
    logprobs = log_distribution(torch.randn(2, 5))
    rows, chosen = torch.tensor([0, 0, 1, 0]), torch.tensor([4, 1, 2, 4])
    torch.testing.assert_close(pick(logprobs, chosen, rows), pick(logprobs[rows], chosen))
