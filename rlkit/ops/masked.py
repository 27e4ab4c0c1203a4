"""Sums and means over the entries that count.

What does not count is replaced, not multiplied by zero: padding may hold infinities, and ``0 * inf`` is NaN.
"""

from __future__ import annotations

from torch import Tensor


def exact(values: Tensor) -> Tensor:
    """Return values in float64, for sums that need the digits; on the CPU where the device (MPS) has no float64."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def masked_sum(values: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Return the sum of the values whose mask is 1, over ``dim`` (None: over all)."""
    return values.masked_fill(~mask.bool(), 0).sum(dim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Return the mean of the values whose mask is 1, over ``dim`` (None: over all); 0 where none counts."""
    return masked_sum(values, mask, dim) / mask.sum(dim).clamp_min(1)
