"""Sums and means over the entries that count."""

import torch

from rlkit.ops.masked import masked_mean, masked_sum


def test_only_what_counts_is_averaged_even_beside_infinities() -> None:
    values = torch.tensor([[1.0, 3.0, torch.inf], [torch.nan, 4.0, 8.0]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert masked_sum(values, mask).item() == 16.0
    assert masked_mean(values, mask).item() == 4.0
    assert masked_mean(values, mask, -1).tolist() == [2.0, 6.0]


def test_the_mean_of_nothing_is_zero_without_a_nan_gradient() -> None:
    values = torch.tensor([[torch.inf, 1.0]], requires_grad=True)
    mean = masked_mean(values, torch.zeros(1, 2, dtype=torch.bool), -1)
    mean.sum().backward()
    assert mean.tolist() == [0.0]
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, 0.0]]
