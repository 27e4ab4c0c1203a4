"""Unconstrained sampling: temperature, top-k and top-p, with the prompt computed once per group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from rlkit.errors import TrainingError
from rlkit.ops.masked import exact


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
    """Return the logits that stay, and their token ids: likeliest first, or the whole vocabulary in its order.

    With both limits top-k comes first, and top-p is a share of what it leaves.

    Args:
        logits: (N, V), finite or ``-inf``.
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
    noise = torch.stack([torch.rand(group_size, max_tokens, generator=g, dtype=torch.float64) for g in generators])
    noise = noise.flatten(0, 1).to("cpu" if prompts.device.type == "mps" else prompts.device)  # (N, C) with N = B G
    rows = _Rows(lm, prompts, prompt_mask, group_size)
    alive = torch.ones(len(noise), dtype=torch.bool, device=prompts.device)
    columns: list[tuple[Tensor, ...]] = []
    for step in range(max_tokens):
        if step:
            rows.append(columns[-1][0])
        token, logprob, kept = _draw(rows.logits, truncation, noise[:, step])
        token = token.masked_fill(~alive, pad_token_id)
        columns.append((token, alive, logprob.masked_fill(~alive, 0.0), kept.masked_fill(~alive[:, None], -1)))
        alive = alive & (token != end_token_id)
        if not alive.any():
            break
    return _stack(columns, alive, len(prompts), group_size, truncation.active)


class _Rows:
    """N = B G growing rows with a cache; the prompts are computed once, then their cache is repeated.

    Args:
        lm: a causal language model.
        prompts: (B, P) left-padded.
        prompt_mask: (B, P) 1 on tokens.
        group_size: G.
    """

    def __init__(self, lm: Any, prompts: Tensor, prompt_mask: Tensor, group_size: int) -> None:
        self.lm, mask = lm, prompt_mask.long()
        out = lm(
            input_ids=prompts,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
            past_key_values=DynamicCache(),
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = out.past_key_values
        self.cache.batch_repeat_interleave(group_size)
        self.logits = out.logits[:, -1].repeat_interleave(group_size, 0)  # (N, V)
        self.mask = mask.repeat_interleave(group_size, 0)  # (N, positions so far)
        self.next_position = self.mask.sum(-1, keepdim=True)  # (N, 1)

    def append(self, tokens: Tensor) -> None:
        """Put a token (N,) behind each row and compute the logits after it."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        out = self.lm(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.next_position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits, self.next_position = out.logits[:, -1], self.next_position + 1


def _draw(logits: Tensor, truncation: Truncation, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a token per row by inverting the cumulative distribution of what is kept.

    Returns:
        (N,) tokens, (N,) their log-probs, and (N, W) the ids that were kept (W = 0 where nothing is cut off).
    """
    if not torch.isfinite(logits.amax(-1)).all():  # NaN or +inf anywhere, or nothing but -inf
        raise TrainingError(
            "rollout: the policy's logits are not finite; lower the learning rate or look at the last good checkpoint"
        )
    values, ids = kept_logits(logits, truncation)
    logprobs = values.log_softmax(-1)  # (N, W)
    cumulative = exact(logprobs).exp().cumsum(-1)
    # "<=", so that a noise of exactly 0 never lands on a token without mass
    place = (cumulative <= noise[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True).to(ids.device)  # (N, 1)
    kept = ids.masked_fill(torch.isneginf(values), -1) if truncation.active else ids[:, :0]
    return ids.gather(1, place)[:, 0], logprobs.gather(1, place)[:, 0], kept


def _stack(columns: list[tuple[Tensor, ...]], alive: Tensor, prompts: int, group_size: int, active: bool) -> Sampled:
    shape = (prompts, group_size, len(columns))
    tokens, mask, logprobs = (torch.stack([column[i] for column in columns], -1).view(shape) for i in range(3))
    kept = None
    if active:
        width = max(int((column[3] >= 0).sum(-1).max()) for column in columns)  # of rows that had not ended
        padded = [torch.nn.functional.pad(c[3], (0, width - c[3].shape[-1]), value=-1) for c in columns]
        kept = torch.stack(padded, 1).view(*shape, width)
    return Sampled(tokens, mask, logprobs, alive.view(prompts, group_size), kept)
