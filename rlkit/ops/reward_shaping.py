"""What is done to a completion's score before it becomes a reward.

Scaling and clipping keep a learned reward within the range that a value head can follow (Engstrom et al. 2020, arXiv
2005.12729, section 3).
"""

from __future__ import annotations

from torch import Tensor


def shaped(scores: Tensor, scale: float = 1.0, clip: float | None = None) -> Tensor:
    """Return scores times ``scale``, then limited to [-clip, clip].

    Args:
        scores: (B, G), or (B, G, C) where the reward is dense.
        scale: factor, applied first.
        clip: largest absolute value (None: none).
    """
    scores = scores * scale
    return scores if clip is None else scores.clamp(-clip, clip)


def without_end_penalty(scores: Tensor, truncated: Tensor, penalty: float) -> Tensor:
    """Return (B, G) scores, less ``penalty`` where a completion was cut off before its end token.

    Args:
        scores: (B, G) one per completion.
        truncated: (B, G) True where a completion has no end token.
        penalty: what is taken away; not negative.
    """
    return scores - penalty * truncated.to(scores.dtype)
