"""Rewards from the order of a group's completions, and from how far a completion follows the target.

``rank_discount_penalty`` is MiniOneRec's ranking term (arXiv 2510.24431, its ranking reward; the formula is that of its
released code). ``prefix_match`` grades a completion by its leading levels, coarse to fine.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rank_discount_penalty(hits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return how much a wrong completion is punished for its rank, the front ranks most.

    p_i = 0 for a hit, -(1 / log2(i + 2)) / S for a miss, with S = sum over j < G of 1 / log2(j + 2); 0 for a whole
    group without a hit. Only meaningful where position i is a rank: for beams, best first.

    Args:
        hits: (B, G) True where the completion is right.
        mask: (B, G) 1 where a completion is present; the others get 0, ranks and S stay those of G positions.

    Returns:
        (B, G) float32, between -1 / S and 0.
    """
    present = torch.ones_like(hits, dtype=torch.bool) if mask is None else mask.bool()
    right = hits.bool() & present
    discounts = 1 / torch.log2(torch.arange(hits.shape[1], device=hits.device) + 2.0)  # (G,)
    misses = present & ~right & right.any(-1, keepdim=True)  # (B, G)
    return torch.where(misses, -discounts / discounts.sum(), 0.0)


def prefix_match(tokens: Tensor, mask: Tensor, target: Tensor, target_mask: Tensor) -> Tensor:
    """Return which share of the target's levels a completion gets right before its first mistake.

    Args:
        tokens: (B, G, C) completions.
        mask: (B, G, C) 1 for tokens that count as levels (leave an end-of-sequence token out of both masks).
        target: (B, C) the right completions.
        target_mask: (B, C) as ``mask``.

    Returns:
        (B, G) float32 in [0, 1]; 0 for an absent completion or an empty target.
    """
    same = (tokens == target[:, None]) & mask.bool() & target_mask.bool()[:, None]  # (B, G, C)
    matched = same.cumprod(-1).sum(-1)  # (B, G) levels before the first mistake
    return matched / target_mask.sum(-1, keepdim=True).clamp_min(1)
