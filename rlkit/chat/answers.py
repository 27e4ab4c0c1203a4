"""From completions back to answers: how they are decoded, when they are right, and the greedy one of each prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlkit.policy.sampler import encode_prompts, prompt_limit
from rlkit.policy.text_sampler import Truncation, sample_text
from rlkit.records import Prompt


class Answer(NamedTuple):
    """What a model said."""

    text: str
    """Without the end token; any other special token stays visible, so that it cannot pass for nothing."""
    truncated: bool
    """Whether it was cut off before its end."""
    tokens: int
    """Its length, the end token included."""


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Tensor, mask: Tensor, truncated: Tensor) -> list[Answer]:
    """Turn completions into answers.

    Args:
        tokenizer: the policy's.
        tokens: (N, C) right-padded ids.
        mask: (N, C) True up to and including the end token.
        truncated: (N,) True where no end token came in time.
    """
    rows = [row[kept].tolist() for row, kept in zip(tokens, mask)]
    spoken = [row if cut else row[:-1] for row, cut in zip(rows, truncated.tolist())]
    texts = tokenizer.batch_decode(spoken, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return [Answer(text, cut, len(row)) for text, cut, row in zip(texts, truncated.tolist(), rows)]


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
