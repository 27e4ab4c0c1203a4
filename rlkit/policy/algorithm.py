"""What an online algorithm supplies; the loop that calls it knows nothing else of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlkit.ops.policy_loss import Counts
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import PolicyOutput
from rlkit.policy.rollouts import Rollouts


class PolicyAlgorithm:
    """An online algorithm: from rewards to advantages, and from those to a loss."""

    credits = False
    """Whether ``credit`` is called, and so log-probs (and values) of the sampling policy are computed for it."""
    target_kl: float | None = None
    """A rollout's remaining updates are skipped where ``approx_kl`` exceeds 1.5 times this; None: never."""
    value_learning_rate: float | None = None
    """The peak learning rate of what values states; None: that of the policy."""

    def __init__(self) -> None:
        self.state: dict[str, float] = {}
        """What a checkpoint has to hold of the algorithm."""

    def experience(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """Return numbers of all groups, (B, G) or (B, G, C), from rewards alone; the same call on every rank."""
        return {"rewards": rollouts.rewards}

    def credit(self, parts: Sequence[GroupBatch]) -> dict[str, float]:
        """Add what the loss reads to this rank's mini-batches of a fresh rollout, and return what to log.

        ``part.numbers`` holds what ``experience`` returned, ``old_logprobs`` (B, G, C), ``ref_logprobs`` where a
        reference is kept (``ref_kl`` with the estimator ``full``), and ``values`` where there is a value head. Sums
        over ranks are the algorithm's (``rlkit.models.wrapped.global_sum``).
        """
        return {}

    def loss(self, output: PolicyOutput, batch: GroupBatch, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a micro-batch's share of the loss, and shares of metrics; shares add up over the global batch.

        A metric called ``approx_kl`` is what ``target_kl`` is compared with.
        """
        raise NotImplementedError
