"""Rewards that measure text: diversity within a group, repetition, length, and the consistency of its language."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlkit.chat.verifiers.languages import main_scripts, scripts_of, share_in
from rlkit.chat.verifiers.patterns import ngrams, words
from rlkit.config.rules import (
    DiversitySettings,
    LanguageConsistencySettings,
    LengthPenaltySettings,
    RepetitionSettings,
)
from rlkit.errors import RecipeError
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.text_rewards import Outcome, Sample, TextReward
from rlkit.policy.text_rewards import samples as samples_of


class Diversity(TextReward):
    """Distinct n-grams within a group; samples of rows make a group where their prompts are equal.

    Args:
        settings: the reward's.
        domain: whose tokenizer decodes rollouts.
    """

    def __init__(self, settings: DiversitySettings, domain: Any) -> None:
        super().__init__(self._by_prompt, domain)
        self.ngram = settings.ngram

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """Return (B, G) scores; a prompt that stands twice in the rollouts makes two groups."""
        present = rollouts.present
        groups = present.nonzero()[:, 0].tolist()
        texts = [sample.completion for sample in samples_of(rollouts, self.domain.tokenizer)]
        found = distinct(texts, groups, self.ngram)
        self.outcomes = [Outcome(score) for score in found]
        scores = torch.zeros(present.shape)
        scores[present] = torch.tensor(found, dtype=torch.float32)
        return scores

    def _by_prompt(self, samples: Sequence[Sample]) -> list[float]:
        return distinct([sample.completion for sample in samples], [sample.prompt for sample in samples], self.ngram)


def distinct(texts: Sequence[str], groups: Sequence[Any], n: int) -> list[float]:
    """Return for each text the mean over its n-grams of 1 / (times the n-gram is said in the group).

    Weighted by their numbers of n-grams, a group's values average to its distinct-n: every n-gram that is said k times
    counts k times 1 / k.

    Args:
        texts: completions.
        groups: what tells which of them belong together.
        n: words of an n-gram.
    """
    grams = [ngrams(words(text), n) for text in texts]
    said: dict[Any, Counter[tuple[str, ...]]] = {}
    for group, found in zip(groups, grams):
        said.setdefault(group, Counter()).update(found)
    return [
        sum(1 / said[group][gram] for gram in found) / len(found) if found else 0.0
        for group, found in zip(groups, grams)
    ]


def repetition(settings: RepetitionSettings, domain: Any) -> TextReward:
    """Build the reward: minus the share of n-grams that a completion has said before."""

    def score(samples: Sequence[Sample]) -> list[float]:
        return [-repeated(sample.completion, settings.ngram) for sample in samples]

    return TextReward(score, domain)


def repeated(text: str, n: int) -> float:
    """Return the share of a text's n-grams that stand in it before; 0 for an empty one."""
    found = ngrams(words(text), n)
    return 1 - len(set(found)) / len(found) if found else 0.0


class LengthPenalty(TextReward):
    """Soft overlong punishment.

    Args:
        settings: the reward's.
        domain: whose tokenizer counts the tokens of rows; rollouts bring their own.
    """

    counts_tokens: ClassVar = True
    """Whether rows can be scored only where the domain is bound to a tokenizer."""

    def __init__(self, settings: LengthPenaltySettings, domain: Any) -> None:
        super().__init__(self._by_tokenizer, domain)
        self.settings = settings

    def __call__(self, rollouts: Rollouts) -> Tensor:
        """Return (B, G) scores."""
        tokens = rollouts.batch.mask.sum(-1)  # (B, G)
        scores = overlong(tokens, self.settings.max_tokens, self.settings.soft_tokens)
        self.outcomes = [Outcome(score) for score in scores[rollouts.present].tolist()]
        return scores

    def _by_tokenizer(self, samples: Sequence[Sample]) -> list[float]:
        tokenizer = getattr(self.domain, "tokenizer", None)
        if tokenizer is None:
            raise RecipeError(
                "reward length_penalty: counts tokens, and rows have none without a model; use it in a recipe, or the "
                "reward format with length bands"
            )
        ids = tokenizer([sample.completion for sample in samples], add_special_tokens=False)["input_ids"]
        lengths = [len(row) + (not sample.truncated) for row, sample in zip(ids, samples)]
        return overlong(torch.tensor(lengths), self.settings.max_tokens, self.settings.soft_tokens).tolist()


def overlong(tokens: Tensor, max_tokens: int, soft_tokens: int) -> Tensor:
    """Return eq. 13 of DAPO: 0, then falling linearly over the soft tokens, -1 from ``max_tokens`` on.

    Args:
        tokens: any shape; lengths, the end token included.
        max_tokens: L_max.
        soft_tokens: L_cache.
    """
    return ((max_tokens - soft_tokens - tokens) / soft_tokens).clamp(-1.0, 0.0)


def language_consistency(settings: LanguageConsistencySettings, domain: Any) -> TextReward:
    """Build the reward: the share of a completion's letters in the script that is expected."""

    def score(samples: Sequence[Sample]) -> list[float]:
        return [_consistency(sample, settings.language) for sample in samples]

    return TextReward(score, domain)


def _consistency(sample: Sample, language: str | None) -> float:
    wanted = scripts_of(language) if language else main_scripts(sample.prompt)
    return share_in(sample.completion, wanted) if wanted else 1.0
