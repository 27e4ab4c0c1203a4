"""Answers of a chat model: when they are right, and the greedy one of each prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlkit.policy.sampler import encode_prompts, prompt_limit
from rlkit.policy.text_rewards import Answer, decode
from rlkit.policy.text_sampler import Truncation, sample_text
from rlkit.records import Prompt


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
    answers: list[Answer] = []
    limit = prompt_limit(lm, max_tokens)
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        ids, mask = encode_prompts(tokenizer, part, device, limit)
        found = sample_text(
            lm,
            ids,
            mask,
            group_size=1,
            truncation=Truncation(1.0, top_k=1),
            max_tokens=max_tokens,
            end_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            generators=[torch.Generator()] * len(part),  # one token is left to draw from
        )
        answers += decode(tokenizer, found.tokens[:, 0].cpu(), found.mask[:, 0].cpu(), found.truncated[:, 0].cpu())
        if progress:
            progress(len(answers))
    return answers
