"""Unconstrained sampling: temperature, top-k and top-p, with the prompt computed once per group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from rlkit.errors import TrainingError


class Sampled(NamedTuple):
    """Completions of B prompts, G each."""

    tokens: Tensor
    """(B, G, C) right-padded."""
    mask: Tensor
    """(B, G, C) True up to and including the end token."""
    logprobs: Tensor
    """(B, G, C) of the chosen tokens, over the kept set, at the sampling temperature; 0 where masked."""
    truncated: Tensor
    """(B, G) True where no end token came in time."""
    kept: Tensor | None
    """(B, G, C, W) ids that top-k and top-p kept, padded with -1; None: the whole vocabulary."""


class Truncation(NamedTuple):
    """Which tokens may be sampled at a step."""

    temperature: float
    top_k: int | None = None
    top_p: float = 1.0

    @property
    def active(self) -> bool:
        """Return whether any token is ever left out."""
        return self.top_k is not None or self.top_p < 1.0


def kept_logits(logits: Tensor, truncation: Truncation) -> tuple[Tensor, Tensor]:
    """Return the logits that stay, likeliest first, and their token ids.

    Args:
        logits: (N, V).
        truncation: what to keep; the likeliest token always stays.

    Returns:
        (N, W) logits divided by the temperature, ``-inf`` where cut off, and (N, W) ids.
    """
    scaled = logits.float() / truncation.temperature
    if not truncation.active:
        return scaled, torch.arange(scaled.shape[-1], device=scaled.device).expand_as(scaled)
    count = min(truncation.top_k or scaled.shape[-1], scaled.shape[-1])
    values, ids = scaled.topk(count, dim=-1)  # (N, W)
    if truncation.top_p < 1.0:
        probabilities = values.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        values = values.masked_fill(before >= truncation.top_p, -torch.inf)
    width = int(torch.isfinite(values).sum(-1).max())
    return values[:, :width], ids[:, :width]


@torch.no_grad()
def sample_text(
    lm: Any,
    prompts: Tensor,
    prompt_mask: Tensor,
    *,
    group_size: int,
    truncation: Truncation,
    max_tokens: int,
    end_token_id: int,
    pad_token_id: int,
    generators: Sequence[torch.Generator],
) -> Sampled:
    """Sample G completions of each prompt.

    Args:
        lm: a causal language model in evaluation mode.
        prompts: (B, P) left-padded ids.
        prompt_mask: (B, P) 1 on tokens.
        group_size: G.
        truncation: temperature, top-k and top-p.
        max_tokens: where completions are cut off.
        end_token_id: ends a completion; it belongs to it.
        pad_token_id: fills what comes after.
        generators: one per prompt; a prompt's completions depend on nothing else that is random.

    Raises:
        TrainingError: the model returns logits that are not finite.
    """
    uniform = torch.stack([torch.rand(group_size, max_tokens, generator=g) for g in generators])  # (B, G, C)
    uniform = uniform.flatten(0, 1).to(prompts.device, torch.float64)  # (N, C) with N = B * G
    mask = prompt_mask.long()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    out = lm(
        prompts,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=DynamicCache(),
        use_cache=True,
        logits_to_keep=1,
    )
    cache, logits = out.past_key_values, out.logits[:, -1].repeat_interleave(group_size, 0)  # (N, V)
    cache.batch_repeat_interleave(group_size)
    mask, position = mask.repeat_interleave(group_size, 0), mask.sum(-1, keepdim=True).repeat_interleave(group_size, 0)
    alive = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for step in range(max_tokens):
        token, logprob, kept = _draw(logits, truncation, uniform[:, step])
        token = token.masked_fill(~alive, pad_token_id)
        columns.append((token, alive, logprob.masked_fill(~alive, 0.0), kept))
        alive = alive & (token != end_token_id)
        if not alive.any() or step == max_tokens - 1:
            break
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        out = lm(
            token[:, None], attention_mask=mask, position_ids=position + step, past_key_values=cache, use_cache=True
        )
        logits = out.logits[:, -1]
    return _stack(columns, alive, len(prompts), group_size, truncation.active)


def _draw(logits: Tensor, truncation: Truncation, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a token per row by inverting the cumulative distribution of what is kept."""
    values, ids = kept_logits(logits, truncation)
    if not torch.isfinite(values[:, 0]).all() and not torch.isfinite(values.max(-1).values).all():
        raise TrainingError(
            "rollout: the policy's logits are not finite; lower the learning rate or look at the last good checkpoint"
        )
    logprobs = values.log_softmax(-1)  # (N, W)
    cumulative = logprobs.double().exp().cumsum(-1)
    place = (cumulative < uniform[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    place = place.clamp_max(values.shape[-1] - 1)  # (N, 1)
    kept = ids.masked_fill(torch.isneginf(values), -1) if truncation.active else ids[:, :0]
    return ids.gather(1, place)[:, 0], logprobs.gather(1, place)[:, 0], kept


def _stack(columns: list[tuple[Tensor, ...]], alive: Tensor, prompts: int, group_size: int, active: bool) -> Sampled:
    shape = (prompts, group_size, len(columns))
    tokens, mask, logprobs = (torch.stack([column[i] for column in columns], -1).view(shape) for i in range(3))
    kept = None
    if active:
        width = max(column[3].shape[-1] for column in columns)
        padded = [torch.nn.functional.pad(c[3], (0, width - c[3].shape[-1]), value=-1) for c in columns]
        kept = torch.stack(padded, 1).view(*shape, width)
    return Sampled(tokens, mask, logprobs, alive.view(prompts, group_size), kept)
