"""From prompts to completions: beams or samples under a constraint, or free text. Built-in rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlkit.config.rollouts import BeamSettings, SampleSettings
from rlkit.errors import DataError, RecipeError
from rlkit.models.attention import decoder
from rlkit.models.constraint import Constraint
from rlkit.policy.beam_tree import beam_search, sample, sample_distinct
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.text_sampler import Truncation, sample_text
from rlkit.records import Prompt

SHOWN_PROMPTS = 20
"""Prompts without room that an error names; a model with few positions has none for any."""


@dataclass(frozen=True)
class RolloutRequest:
    """What a rollout needs.

    Args:
        lm: the policy's language model, in evaluation mode, whole on this rank.
        tokenizer: its tokenizer.
        prompts: B records.
        group_size: G.
        constraint: the tree of valid completions, or None.
        normalization: how the constraint normalizes log-probs.
        alive: (B, nodes) which nodes each prompt may use, or None.
        generators: one per prompt.
        device: where the model lies.
    """

    lm: Any
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Prompt]
    group_size: int
    constraint: Constraint | None
    normalization: Any
    alive: Tensor | None
    generators: Sequence[torch.Generator]
    device: Any


def prompt_limit(lm: Any, completion_tokens: int) -> int | None:
    """Return how many tokens a prompt may have if a completion is to follow it; None: the model has no limit."""
    positions = getattr(decoder(lm).config, "max_position_embeddings", None)
    return None if positions is None else positions - completion_tokens


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], device: Any, limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return (B, P) left-padded ids and their mask; no special tokens are added.

    Args:
        tokenizer: the policy's.
        prompts: B records.
        device: where the ids go.
        limit: the longest prompt that the model has room for, in tokens.

    Raises:
        DataError: prompts without a token, or with too many.
    """
    rows = _prompt_rows(tokenizer, prompts)
    if problems := _unfit(prompts, rows, limit):
        raise DataError(*problems)
    width = max(len(row) for row in rows)
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
    mask = torch.arange(width) >= width - torch.tensor([len(row) for row in rows])[:, None]
    return ids.to(device), mask.to(device)


def check_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], limit: int | None) -> None:
    """Refuse before training the prompts that ``encode_prompts`` would refuse when the stream reaches them.

    Args:
        tokenizer: the policy's.
        prompts: all that the stage may draw.
        limit: the longest prompt that the model has room for, in tokens.

    Raises:
        DataError: such prompts, the first ``SHOWN_PROMPTS`` by name and the others as a number.
    """
    problems = _unfit(prompts, _prompt_rows(tokenizer, prompts), limit)
    more = len(problems) - SHOWN_PROMPTS
    if problems:
        raise DataError(*problems[:SHOWN_PROMPTS], *([f"prompts: {more} more like these"] if more > 0 else []))


def _prompt_rows(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    return tokenizer([prompt.text for prompt in prompts], add_special_tokens=False).input_ids if prompts else []


def _unfit(prompts: Sequence[Prompt], rows: Sequence[Sequence[int]], limit: int | None) -> list[str]:
    return [
        f"{prompt.source}: prompt: {len(row)} tokens, but the model has room for {limit} before its completion; "
        "shorten the prompt, or the completions"
        if row
        else f"{prompt.source}: prompt: no tokens, got {prompt.text!r}; give it a text"
        for prompt, row in zip(prompts, rows)
        if not row or (limit is not None and len(row) > limit)
    ]


def encode_answers(request: RolloutRequest) -> tuple[Tensor, Tensor]:
    """Return (B, C) the answers' tokens, right-padded with 0, and their mask."""
    rows = request.tokenizer([prompt.answer for prompt in request.prompts], add_special_tokens=False).input_ids
    if request.constraint is None or request.constraint.end_token is not None:
        rows = [[*row, request.tokenizer.eos_token_id] for row in rows]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]


class BeamRollout:
    """The G best completions under the constraint.

    Args:
        settings: its settings.
    """

    max_completion_tokens = None
    """The constraint ends completions."""

    def __init__(self, settings: BeamSettings) -> None:
        self.temperature = settings.temperature

    def __call__(self, request: RolloutRequest) -> Rollouts:
        """Complete the prompts.

        Raises:
            RecipeError: the domain has no constraint.
        """
        if request.constraint is None:
            raise RecipeError("algorithm.rollout: beam needs a constraint, which this domain lacks; use type sample")
        return _constrained(
            request, beam_search, self.temperature, num_beams=request.group_size, normalization=request.normalization
        )


class SampleRollout:
    """G samples, under the constraint where there is one.

    Args:
        settings: its settings.
    """

    def __init__(self, settings: SampleSettings) -> None:
        self.settings, self.temperature = settings, settings.temperature
        self.max_completion_tokens = settings.max_completion_tokens

    def __call__(self, request: RolloutRequest) -> Rollouts:
        """Complete the prompts."""
        if request.constraint is None:
            return self._free(request)
        draw = sample_distinct if self.settings.distinct else sample
        options = {"num_samples": request.group_size, "generators": request.generators}
        return _constrained(request, draw, self.temperature, **options)

    def _free(self, request: RolloutRequest) -> Rollouts:
        limit = prompt_limit(request.lm, self.max_completion_tokens)
        ids, mask = encode_prompts(request.tokenizer, request.prompts, request.device, limit)
        sampled = sample_text(
            request.lm,
            ids,
            mask,
            group_size=request.group_size,
            truncation=Truncation(self.temperature, self.settings.top_k, self.settings.top_p),
            max_tokens=self.max_completion_tokens,
            end_token_id=request.tokenizer.eos_token_id,
            pad_token_id=request.tokenizer.pad_token_id,
            generators=request.generators,
        )
        kept = None if sampled.kept is None else sampled.kept.cpu()
        batch = GroupBatch(ids.cpu(), mask.cpu(), sampled.tokens.cpu(), sampled.mask.cpu(), {}, kept)
        scores = sampled.logprobs.sum(-1).cpu()
        return Rollouts(list(request.prompts), batch, scores, None, sampled.truncated.cpu(), *encode_answers(request))


def _constrained(request: RolloutRequest, draw: Any, temperature: float, **options: Any) -> Rollouts:
    assert request.constraint is not None
    limit = prompt_limit(request.lm, request.constraint.max_tokens)
    ids, mask = encode_prompts(request.tokenizer, request.prompts, request.device, limit)
    beams = draw(
        request.lm,
        ids,
        mask,
        request.constraint,
        temperature=temperature,
        alive=request.alive,
        pad_token_id=request.tokenizer.pad_token_id,
        **options,
    )
    batch = GroupBatch(ids.cpu(), mask.cpu(), beams.tokens.cpu(), beams.mask.cpu(), {}, None)
    truncated = torch.zeros(beams.leaves.shape, dtype=torch.bool)
    return Rollouts(
        list(request.prompts),
        batch,
        beams.scores.float().cpu(),
        beams.leaves.cpu(),
        truncated,
        *encode_answers(request),
    )
