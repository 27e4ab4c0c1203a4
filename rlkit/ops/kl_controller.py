"""The weight of the KL penalty, adapted so that the KL stays near a target.

Ziegler et al. 2019, arXiv 1909.08593, section 2.2: after each batch the weight grows or shrinks in proportion to the
relative distance from the target, which is clipped to 20 %. Their published code scales the step by the samples seen
over a horizon; so do we. The weight is all the state there is; a fixed one is one that is not adapted.
"""

from __future__ import annotations

import math

MAX_ERROR = 0.2


def adapted(coef: float, kl: float, *, target: float, horizon: int, completions: int) -> float:
    """Return the weight after a batch.

    Args:
        coef: the weight before.
        kl: mean KL of the batch, per completion or per token, as the target is.
        target: the KL that is aimed at.
        horizon: completions over which the weight changes by at most a fifth.
        completions: those of the batch, over all ranks.
    """
    assert math.isfinite(kl), f"the KL that the weight should follow is {kl}"
    error = min(max(kl / target - 1, -MAX_ERROR), MAX_ERROR)
    return coef * (1 + error * min(completions / horizon, 1.0))  # a batch beyond the horizon could turn the weight to 0
