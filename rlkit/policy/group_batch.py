"""One prompt, G completions: the batch of every policy algorithm.

PPO has G = 1 or more, GRPO G > 1, a preference pair G = 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class GroupBatch:
    """B prompts with G completions each; a mask of 1 means "counts".

    Args:
        prompts: (B, P) token ids, left-padded; every prompt has at least one token.
        prompt_mask: (B, P) True for tokens.
        completions: (B, G, C) token ids, right-padded.
        mask: (B, G, C) True for tokens that count; all False for an absent completion (a group may hold fewer).
        numbers: what travels along, (B, G, C) per token or (B, G) per completion: advantages, old_logprobs ...
        kept: (B, G, C, W) the token ids that top-k or top-p sampling kept, -1 for padding; None: all.
    """

    prompts: Tensor
    prompt_mask: Tensor
    completions: Tensor
    mask: Tensor
    numbers: dict[str, Tensor] = field(default_factory=dict)
    kept: Tensor | None = None

    def __post_init__(self) -> None:
        self.prompt_mask, self.mask = self.prompt_mask.bool(), self.mask.bool()
        assert self.prompts.shape == self.prompt_mask.shape, (self.prompts.shape, self.prompt_mask.shape)
        assert self.completions.shape == self.mask.shape, (self.completions.shape, self.mask.shape)
        assert all(value.shape in (self.mask.shape, self.mask.shape[:2]) for value in self.numbers.values())

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def num_tokens(self) -> Tensor:
        """Return () how many completion tokens count."""
        return self.mask.sum()

    @property
    def num_completions(self) -> Tensor:
        """Return () how many completions are present."""
        return self.mask.any(-1).sum()

    def select(self, indices: Tensor | Sequence[int]) -> GroupBatch:
        """Return some groups in the given order, without the columns that would be padding for all of them."""
        rows = torch.as_tensor(indices, dtype=torch.long, device=self.prompts.device)
        prompt_mask, mask = self.prompt_mask[rows], self.mask[rows]
        start, end = _leading_padding(prompt_mask), mask.shape[2] - _leading_padding(mask.flatten(0, 1).flip(-1))
        return GroupBatch(
            prompts=self.prompts[rows, start:],
            prompt_mask=prompt_mask[:, start:],
            completions=self.completions[rows, :, :end],
            mask=mask[:, :, :end],
            numbers={
                name: value[rows, :, :end] if value.ndim == 3 else value[rows] for name, value in self.numbers.items()
            },
            kept=None if self.kept is None else self.kept[rows, :, :end],
        )

    def split(self, sizes: Sequence[int]) -> list[GroupBatch]:
        """Return consecutive parts of the given sizes, which add up to B."""
        assert sum(sizes) == len(self), (sizes, len(self))
        return [self.select(part) for part in torch.arange(len(self)).split(list(sizes))]

    def to(self, device: torch.device | str) -> GroupBatch:
        """Return the same batch on another device."""
        return replace(
            self,
            prompts=self.prompts.to(device),
            prompt_mask=self.prompt_mask.to(device),
            completions=self.completions.to(device),
            mask=self.mask.to(device),
            numbers={name: value.to(device) for name, value in self.numbers.items()},
            kept=None if self.kept is None else self.kept.to(device),
        )


def concat(batches: Sequence[GroupBatch]) -> GroupBatch:
    """Return all groups as one batch, padded to the widest prompt and completion; G and the numbers are the same."""
    prompt_tokens = max(batch.prompts.shape[1] for batch in batches)
    tokens = max(batch.completions.shape[2] for batch in batches)
    return GroupBatch(
        prompts=torch.cat([_left(batch.prompts, prompt_tokens) for batch in batches]),
        prompt_mask=torch.cat([_left(batch.prompt_mask, prompt_tokens) for batch in batches]),
        completions=torch.cat([_right(batch.completions, tokens) for batch in batches]),
        mask=torch.cat([_right(batch.mask, tokens) for batch in batches]),
        numbers=_concat_numbers([batch.numbers for batch in batches], tokens),
        kept=_concat_kept([batch.kept for batch in batches], tokens),
    )


def _leading_padding(mask: Tensor) -> int:
    """Return how many first columns of a mask (N, T) are False in every row; at most T - 1."""
    used = mask.any(0)
    return int(used.int().argmax()) if bool(used.any()) else mask.shape[1] - 1


def _left(values: Tensor, width: int) -> Tensor:
    return F.pad(values, (width - values.shape[-1], 0))


def _right(values: Tensor, width: int, fill: int = 0) -> Tensor:
    return F.pad(values, (0, width - values.shape[-1]), value=fill)


def _concat_numbers(parts: Sequence[dict[str, Tensor]], tokens: int) -> dict[str, Tensor]:
    """Return each number (B, G, C) or (B, G) of all parts."""
    assert all(part.keys() == parts[0].keys() for part in parts), [sorted(part) for part in parts]
    return {
        name: torch.cat([_right(part[name], tokens) if part[name].ndim == 3 else part[name] for part in parts])
        for name in parts[0]
    }


def _concat_kept(parts: Sequence[Tensor | None], tokens: int) -> Tensor | None:
    """Return (B, G, C, W) of all parts, -1 where a part is narrower; all parts have kept tokens, or none has."""
    kept = [part for part in parts if part is not None]
    assert len(kept) in (0, len(parts)), "some batches hold kept tokens and some do not"
    if not kept:
        return None
    width = max(part.shape[3] for part in kept)
    sizes = [(0, width - part.shape[3], 0, tokens - part.shape[2]) for part in kept]
    return torch.cat([F.pad(part, size, value=-1) for part, size in zip(kept, sizes)])
