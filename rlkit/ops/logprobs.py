"""Log-probs and entropies of chosen tokens, over the whole vocabulary or over an allowed subset of it.

Under a constraint (or top-k, top-p) the policy that was sampled is a softmax over the allowed tokens only. Normalizing
over them in the loss too keeps the trained distribution the sampled one; otherwise the importance ratio is biased
(huggingface/trl#6789).
"""

from __future__ import annotations

import torch
from torch import Tensor


def selected_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Return (...) the float32 log-prob of each token over the whole vocabulary.

    Args:
        logits: (..., V) before the temperature.
        tokens: (...) chosen ids.
        temperature: divides the logits.
    """
    return pick(log_distribution(logits, None, temperature), tokens)


def allowed_logprobs(logits: Tensor, mask: Tensor, chosen: Tensor, temperature: float = 1.0) -> Tensor:
    """Return (...) the float32 log-prob of each chosen candidate, normalized over the allowed ones.

    Args:
        logits: (..., W) of the candidates, before the temperature.
        mask: (..., W) 1 where a candidate is allowed; where none is, the result is 0 without gradient.
        chosen: (...) index of the chosen candidate among the W; it must be allowed.
        temperature: divides the logits.
    """
    return pick(log_distribution(logits, mask, temperature), chosen)


def log_distribution(logits: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Return the log-probs of all candidates, in float32: bfloat16's three digits are too few for a ratio.

    The mask is applied twice (the "double where"). Before the softmax, -inf takes the others out of the sum. After it,
    their -inf becomes 0: ``exp(-inf) * -inf``, as in the entropy, is NaN, and so is its gradient, even where a later
    mask throws the value away. It also keeps a row without any allowed candidate, all NaN in between, at 0.

    Args:
        logits: (..., W) before the temperature.
        mask: (..., W) 1 where a candidate is allowed (None: all).
        temperature: divides the logits.

    Returns:
        (..., W), 0 where not allowed.
    """
    logits = logits.float() if temperature == 1.0 else logits.float() / temperature
    if mask is None:
        return logits.log_softmax(-1)
    allowed = mask.bool()
    return logits.masked_fill(~allowed, -torch.inf).log_softmax(-1).masked_fill(~allowed, 0.0)


def entropy(logprobs: Tensor) -> Tensor:
    """Return (...) the entropy in nats of each ``log_distribution`` (..., W); candidates that are not allowed add 0."""
    return -(logprobs.exp() * logprobs).sum(-1)


def pick(logprobs: Tensor, chosen: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return the log-prob of each choice.

    Args:
        logprobs: (..., W) from ``log_distribution``; (R, W) with ``rows``.
        chosen: (...) index among the W; (N,) with ``rows``.
        rows: (N,) the distribution behind each choice, where several share one: the first tokens of a group all follow
            the same prompt.
    """
    if rows is not None:
        return logprobs[rows, chosen]
    return logprobs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
