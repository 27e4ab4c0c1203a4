"""Rewards that read text: rollouts are decoded into samples, and each sample gets a score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlkit.policy.rollouts import Rollouts


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


@dataclass(frozen=True, slots=True)
class Sample:
    """What a reward reads.

    Args:
        prompt: the rendered prompt.
        completion: without its end token.
        answer: what counts as right; empty where there is none.
        truncated: whether the completion was cut off before its end.
        context: the domain's own view of the record.
    """

    prompt: str
    completion: str
    answer: str = ""
    truncated: bool = False
    context: Any = None


Score = Callable[[Sequence[Sample]], Sequence[float]]


class TextReward:
    """A reward on rollouts out of a score on samples; ``score`` alone serves where there are rows but no rollouts.

    Args:
        score: samples in, one finite number each out.
        domain: whose tokenizer decodes rollouts; None where there are none.
    """

    def __init__(self, score: Score, domain: Any) -> None:
        self.score, self.domain = score, domain

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """Return (B, G) scores, 0 where a completion is absent."""
        present = rollouts.present
        scores = torch.zeros(present.shape)
        found = self.score(samples(rollouts, self.domain.tokenizer))
        scores[present] = torch.tensor(list(found), dtype=torch.float32)
        return scores


def samples(rollouts: Rollouts, tokenizer: PreTrainedTokenizerBase) -> list[Sample]:
    """Return the present completions of all groups as text, in order."""
    present, batch = rollouts.present, rollouts.batch
    answers = decode(tokenizer, batch.completions[present], batch.mask[present], rollouts.truncated[present])
    prompts = [rollouts.prompts[row] for row in present.nonzero()[:, 0].tolist()]
    return [
        Sample(prompt.text, answer.text, prompt.answer, answer.truncated, prompt.context)
        for prompt, answer in zip(prompts, answers)
    ]
