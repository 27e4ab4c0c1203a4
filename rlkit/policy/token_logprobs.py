"""Log-probs of chosen tokens from the states that predict them, under a constraint or over the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlkit.models.attention import head_logits
from rlkit.models.constraint import Constraint
from rlkit.ops.logprobs import allowed_logprobs, selected_logprobs


def token_logprobs(lm: Any, states: Tensor, tokens: Tensor, nodes: Tensor, constraint: Constraint | None) -> Tensor:
    """Return the log-prob of each token.

    Args:
        lm: the language model, whose head is applied; with a constraint only to the constraint's tokens.
        states: (N, D) of the decoder; carries the gradient.
        tokens: (N,) chosen ids.
        nodes: (N,) the constraint's node before each token.
        constraint: normalize over the allowed continuations; None: over the vocabulary.

    Returns:
        (N,) float32.
    """
    if constraint is None:
        return selected_logprobs(head_logits(lm, states), tokens)
    children = constraint.children(nodes)  # (N, W)
    rows = constraint.token_ids()  # (S,)
    logits = head_logits(lm, states, rows)  # (N, S)
    place = torch.searchsorted(rows, children.tokens).clamp_max(len(rows) - 1)  # (N, W)
    chosen = (children.mask & (children.tokens == tokens[:, None])).int().argmax(-1)  # (N,)
    return allowed_logprobs(logits.gather(-1, place), children.mask, chosen)
