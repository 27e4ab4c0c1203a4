"""Answers of a chat model: when they are right, and how they are made, greedily or by sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from rlkit.chat.likelihood import ScoredRow
from rlkit.policy.rollouts import generator_for
from rlkit.policy.sampler import encode_prompts, prompt_limit
from rlkit.policy.text_rewards import Answer, decode
from rlkit.policy.text_sampler import Truncation, sample_text
from rlkit.records import Prompt

GREEDY = Truncation(1.0, top_k=1)


class Completion(NamedTuple):
    """An answer, and the tokens that it is made of."""

    answer: Answer
    row: ScoredRow
    """Prompt and answer; the answer's tokens are scored, the end token included."""


def is_exact(answer: Answer, wanted: str) -> bool:
    """Return whether an answer is the wanted one, outer white space aside; one that was cut off never is."""
    return not answer.truncated and answer.text.strip() == wanted.strip()


def greedy_answers(
    lm: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    batch_size: int,
    device: Any,
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Let a model answer with its likeliest token at every step.

    Args:
        lm: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        prompts: rendered prompts.
        max_tokens: where answers are cut off.
        batch_size: prompts that are answered together.
        device: where the model lies.
        progress: told how many prompts are answered.
    """
    found = complete(
        lm, tokenizer, prompts, max_tokens=max_tokens, batch_size=batch_size, device=device, progress=progress
    )
    return [group[0].answer for group in found]


def complete(
    lm: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    batch_size: int,
    device: Any,
    truncation: Truncation = GREEDY,
    samples: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[list[Completion]]:
    """Complete each prompt some times.

    Args:
        lm: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        prompts: B rendered prompts.
        max_tokens: where answers are cut off.
        batch_size: completions that are made together.
        device: where the model lies.
        truncation: how they are sampled.
        samples: completions per prompt.
        seed: of the noise, which is keyed by prompt: another model meets the same one.
        progress: told how many prompts are done.
    """
    found: list[list[Completion]] = []
    limit, size = prompt_limit(lm, max_tokens), max(1, batch_size // samples)
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        ids, mask = encode_prompts(tokenizer, part, device, limit)
        made = sample_text(
            lm,
            ids,
            mask,
            group_size=samples,
            truncation=truncation,
            max_tokens=max_tokens,
            end_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            generators=[generator_for(seed, "evaluate", prompt.key) for prompt in part],
        )
        asked = [row[kept].tolist() for row, kept in zip(ids, mask.bool())]
        for prompt_ids, tokens, kept, cut in zip(asked, made.tokens.cpu(), made.mask.cpu(), made.truncated.cpu()):
            answers = decode(tokenizer, tokens, kept, cut)
            found.append([_completion(prompt_ids, *one) for one in zip(answers, tokens, kept)])
        if progress:
            progress(len(found))
    return found


def _completion(prompt_ids: list[int], answer: Answer, tokens: torch.Tensor, kept: torch.Tensor) -> Completion:
    ids = tokens[kept].tolist()
    return Completion(answer, ScoredRow(prompt_ids + ids, [False] * len(prompt_ids) + [True] * len(ids)))
