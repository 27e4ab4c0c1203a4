"""The weight of the KL penalty, fixed or adapted so that the KL stays near a target.

Ziegler et al. 2019, arXiv 1909.08593, section 2.2: after each batch the weight grows or shrinks in proportion to the
relative distance from the target, which is clipped to 20 %. Their published code scales the step by the samples seen
over a horizon; so do we.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_ERROR = 0.2


@dataclass
class KLController:
    """A weight that may adapt; ``coef`` is all of its state.

    Args:
        coef: the weight now; at first the one to start from.
        target: the KL that is aimed at, per completion or per token as ``update`` is told it; None: the weight stays.
        horizon: completions over which the weight changes by at most a fifth.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, completions: int) -> float:
        """Adapt to the KL that was seen, and return the weight.

        Args:
            kl: the mean that was seen, in the unit of the target.
            completions: how many were seen, over all ranks.
        """
        if self.target is not None:
            self.coef = adapted(self.coef, kl, target=self.target, horizon=self.horizon, completions=completions)
        return self.coef


def adapted(coef: float, kl: float, *, target: float, horizon: int, completions: int) -> float:
    """Return the weight after a batch of completions whose mean KL was ``kl``."""
    assert math.isfinite(kl), f"the KL that the weight should follow is {kl}"
    error = min(max(kl / target - 1, -MAX_ERROR), MAX_ERROR)
    return coef * (1 + error * min(completions / horizon, 1.0))  # a batch beyond the horizon could turn the weight to 0
