"""Does training see the probabilities that sampling saw?"""

from __future__ import annotations

from torch import Tensor

from rlkit.errors import TrainingError
from rlkit.policy.group_batch import GroupBatch

FULL_PRECISION_TOLERANCE = 1e-4
LOW_PRECISION_TOLERANCE = 2e-2


def check_first_pass(logprobs: Tensor, batch: GroupBatch, full_precision: bool) -> None:
    """Assert ratios of 1, per token and per completion, on the first pass over a fresh rollout.

    Log-ratios are compared, as a ratio cannot fall below 1 by more than 1: each token's with the tolerance, that of a
    completion with as many tolerances as it has tokens.

    Args:
        logprobs: (B, G, C) of training.
        batch: with ``scores`` (B, G) and, where there are any, ``old_logprobs`` (B, G, C), both of sampling.
        full_precision: whether the model computes in 32 bits.

    Raises:
        TrainingError: the two disagree.
    """
    sampled = batch.mask.any(-1) & ~batch.numbers["scores"].isnan()  # an added answer has no score
    tokens = batch.mask.sum(-1).clamp_min(1)  # (B, G)
    off = (logprobs.sum(-1) - batch.numbers["scores"]).abs() / tokens  # (B, G)
    worst = float(off.masked_fill(~sampled, 0.0).max())
    if "old_logprobs" in batch.numbers:
        token = (logprobs - batch.numbers["old_logprobs"]).abs()  # (B, G, C)
        worst = max(worst, float(token.masked_fill(~batch.mask, 0.0).max()))
    tolerance = FULL_PRECISION_TOLERANCE if full_precision else LOW_PRECISION_TOLERANCE
    if not worst <= tolerance:
        raise TrainingError(
            f"policy: training and sampling disagree on a rollout's log-probs by {worst:.2g} per token "
            f"(limit {tolerance:g}); look for dropout, a changed temperature or normalization, "
            "or a lower precision in one of the two"
        )
