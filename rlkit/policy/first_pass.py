"""Does training see the probabilities that sampling saw?"""

from __future__ import annotations

from torch import Tensor

from rlkit.errors import TrainingError
from rlkit.policy.group_batch import GroupBatch

FULL_PRECISION_TOLERANCE = 1e-4
LOW_PRECISION_TOLERANCE = 2e-2


def check_first_pass(logprobs: Tensor, batch: GroupBatch, full_precision: bool) -> None:
    """Assert ratios of 1, per token and per completion, on the first pass over a fresh rollout.

    Args:
        logprobs: (B, G, C) of training.
        batch: with ``scores`` (B, G) and, where there are any, ``old_logprobs`` (B, G, C), both of sampling.
        full_precision: whether the model computes in 32 bits.

    Raises:
        TrainingError: the two disagree.
    """
    off = (logprobs.sum(-1) - batch.numbers["scores"]).exp() - 1  # (B, G)
    sampled = batch.mask.any(-1) & ~batch.numbers["scores"].isnan()  # an added answer has no score
    worst = float(off.abs().masked_fill(~sampled, 0.0).max())
    if "old_logprobs" in batch.numbers:
        token = (logprobs - batch.numbers["old_logprobs"]).exp() - 1  # (B, G, C)
        worst = max(worst, float(token.abs().masked_fill(~batch.mask, 0.0).max()))
    tolerance = FULL_PRECISION_TOLERANCE if full_precision else LOW_PRECISION_TOLERANCE
    if not worst <= tolerance * batch.completions.shape[-1]:
        raise TrainingError(
            f"policy: training and sampling disagree on a rollout's probabilities by a ratio of {worst:.2g} "
            f"(limit {tolerance:g} per token); look for dropout, a changed temperature or normalization, "
            "or a lower precision in one of the two"
        )
