"""Log-probs from the states that predict tokens, normalized over what a constraint allows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlkit.models.attention import head_logits
from rlkit.models.constraint import Children, Constraint
from rlkit.ops.logprobs import log_distribution
from rlkit.policy.grouped_forward import columns_of


def children_logprobs(lm: Any, states: Tensor, nodes: Tensor, constraint: Constraint) -> tuple[Tensor, Children]:
    """Return the log-probs of the allowed continuations.

    Args:
        lm: the language model; its head is applied to the constraint's tokens alone.
        states: (N, D) of the decoder; carries the gradient.
        nodes: (N,) the constraint's node at each state.
        constraint: the tree.

    Returns:
        (N, W) float32, 0 where there is no continuation, and the continuations.
    """
    children, rows = constraint.children(nodes), constraint.token_ids()
    logits = head_logits(lm, states, rows).gather(-1, columns_of(rows)[children.tokens])  # (N, W)
    return log_distribution(logits, children.mask), children


def chosen_child(children: Children, tokens: Tensor) -> Tensor:
    """Return (N,) which continuation each token is."""
    return (children.mask & (children.tokens == tokens[:, None])).int().argmax(-1)
