"""Estimators of KL(policy || reference) per token, from log-probs of tokens that the policy sampled.

Schulman, "Approximating KL Divergence" (2020, http://joschu.net/blog/kl-approx.html), with r = reference / policy:
k1 = -log r is unbiased but noisy and may be negative; k2 = (log r)^2 / 2 is biased and never negative;
k3 = r - 1 - log r is unbiased and never negative. k3 is GRPO's penalty (arXiv 2402.03300, section 4.1.1, equation 4).

As a *loss* term they differ: the gradient of k1 is that of the log-prob alone, zero on average, so k1 belongs into a
reward; k2 and k3 pull the policy towards the reference.

``kl_abs`` is the size of k1, a penalty and no estimator: it grows wherever the policy left the reference, up or down.
``kl_full`` is the divergence itself, summed over all candidates of each token, at the cost of both distributions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return log(policy / reference) for each token; same shape as both."""
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return half of the squared log-ratio for each token; same shape as both."""
    return (logprobs - ref_logprobs).square() / 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return r - 1 - log r with r = reference / policy for each token; same shape as both."""
    log_ratio = ref_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio  # expm1: near the reference, exp(x) - 1 - x would be rounding alone


def kl_abs(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return |log(policy / reference)| for each token; same shape as both."""
    return (logprobs - ref_logprobs).abs()


def kl_full(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return (...) the exact KL(policy || reference) of each token.

    Args:
        logprobs: (..., W) of all candidates; carries the gradient. Those that are not allowed add nothing, be they
            -inf, or 0 in both as ``log_distribution`` has them.
        ref_logprobs: (..., W) of the reference; where it is -inf and the policy is not, the divergence is infinite.
    """
    difference = (logprobs - ref_logprobs).masked_fill(logprobs == -torch.inf, 0.0)  # -inf - -inf is NaN
    return (logprobs.exp() * difference).sum(-1)


ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3, "abs": kl_abs}
"""What is computed from the log-probs of the sampled tokens alone."""
