"""Measure one chat model: its answers, their numbers, and what it thinks of given texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from rlkit.chat.ability import ability_hits, chance
from rlkit.chat.answer_numbers import (
    Finders,
    Numbers,
    answer_numbers,
    check_rewards,
    overlap_numbers,
    pass_numbers,
    phrase_finders,
    win_numbers,
    with_answer,
)
from rlkit.chat.answers import GREEDY, Completion, complete
from rlkit.chat.evaluation_data import AbilityItem, own_items, read_ability
from rlkit.chat.likelihood import demonstration_rows, token_kl, token_logprobs
from rlkit.chat.metrics import Estimate, bleu, distinct, has_cjk, mean_with_interval
from rlkit.config.stages import ChatEvaluationSettings, EvaluateStageSettings
from rlkit.job import Job
from rlkit.models.load import LoadedModel
from rlkit.policy.rewarder import WeightedReward, weighted
from rlkit.policy.sampler import prompt_limit
from rlkit.policy.supervised import close_rewards, load_supervised
from rlkit.policy.text_sampler import Truncation
from rlkit.progress import StageProgress
from rlkit.records import Prompt

if TYPE_CHECKING:
    from rlkit.chat.domain import ChatDomain

SAMPLED = "sampled/"


@dataclass
class Bench:
    """What all models are measured with.

    Args:
        job: the evaluation.
        domain: gives prompts and demonstrations, rendered for the model that was loaded last.
        reference: the model that others are compared with; None while it is measured itself, or where there is none.
        first: what was measured of it.
    """

    job: Job
    domain: ChatDomain
    reference: LoadedModel | None = None
    first: Measured | None = None

    @property
    def settings(self) -> EvaluateStageSettings:
        """Return the stage's settings."""
        return self.job.settings

    @property
    def chat(self) -> ChatEvaluationSettings:
        """Return what is measured."""
        return self.settings.chat

    @property
    def device(self) -> torch.device:
        """Return where models are measured."""
        return torch.device(self.job.engine.device)

    @cached_property
    def rewards(self) -> list[WeightedReward]:
        """Return the rewards, loaded once and supervised as in training; those with weights move to the device."""
        found = weighted(self.chat.rewards, lambda settings: load_supervised(self.job, settings))
        check_rewards(found, self.job.stage)
        for reward in found:
            if callable(move := getattr(reward.score, "to", None)):
                move(self.device)
        return found

    def close(self) -> None:
        """End the processes of the rewards."""
        if "rewards" in vars(self):  # they were loaded
            close_rewards(reward.score for reward in self.rewards)

    @cached_property
    def finders(self) -> Finders:
        """Return the tests for phrases."""
        return phrase_finders(self.chat)

    @cached_property
    def items(self) -> dict[str, list[AbilityItem]]:
        """Return the general-ability sets by the name of their metric."""
        sets = {"ability": own_items()} if self.chat.ability else {}
        return sets | ({"own_ability": read_ability(self.chat.ability_file)} if self.chat.ability_file else {})

    @property
    def chances(self) -> dict[str, float]:
        """Return what guessing gets in each general-ability set."""
        return {name: round(chance(items), 6) for name, items in self.items.items()}


@dataclass
class Measured:
    """One model's answers and numbers.

    Args:
        name: the model's.
        prompts: R prompts.
        greedy: the greedy completion of each, (R, 1).
        sampled: (R, S) completions; empty groups where none are sampled.
        numbers: of the greedy answers, (R, 1) each.
        sampled_numbers: of the sampled ones, (R, S) each.
        passed: pass@k of the sampled ones, (R, 1) each.
        estimates: of all texts together.
        num_demonstrations: conversations that the perplexity is of.
    """

    name: str
    prompts: list[Prompt]
    greedy: list[list[Completion]]
    sampled: list[list[Completion]]
    numbers: Numbers
    sampled_numbers: Numbers
    estimates: dict[str, Estimate] = field(default_factory=dict)
    num_demonstrations: int = 0
    passed: Numbers = field(default_factory=dict)

    def summary(self, seed: int) -> dict[str, Estimate]:
        """Return every metric with its interval; prompts are resampled, each with all of its answers."""
        numbers = dict(self.numbers)
        numbers |= {SAMPLED + name: values for name, values in (self.sampled_numbers | self.passed).items()}
        found = {name: _of_prompts(values, seed) for name, values in numbers.items() if np.isfinite(values).any()}
        return found | self.estimates


def measure(bench: Bench, name: str, loaded: LoadedModel) -> Measured:
    """Let a model answer, and measure it.

    Args:
        bench: what all models are measured with.
        name: the model's.
        loaded: the model, on the device and in evaluation mode; the domain is bound to its tokenizer.
    """
    settings, chat = bench.settings, bench.chat
    prompts = bench.domain.prompts(settings.split)[: settings.max_rows]
    greedy = _answers(bench, loaded, prompts, f"{bench.job.stage} {name}", GREEDY, 1)
    result = Measured(name, prompts, greedy, [[] for _ in prompts], _numbers(bench, prompts, greedy), {})
    result.numbers |= overlap_numbers(prompts, [group[0].answer for group in greedy])
    if chat.samples:
        label, truncation = f"{bench.job.stage} {name} samples", Truncation(chat.temperature, None, chat.top_p)
        result.sampled = _answers(bench, loaded, prompts, label, truncation, chat.samples)
        result.sampled_numbers = _numbers(bench, prompts, result.sampled)
        result.passed = pass_numbers(result.sampled_numbers, chat.pass_at)
    if bench.first is not None:
        result.numbers |= win_numbers(result.numbers, bench.first.numbers)
        result.sampled_numbers |= win_numbers(result.sampled_numbers, bench.first.sampled_numbers)
    result.estimates |= _of_texts(bench, result)
    result.estimates |= _perplexity(bench, loaded, result)
    result.estimates |= _kl(bench, loaded, result.sampled)
    result.estimates |= _ability(bench, loaded)
    return result


def _numbers(bench: Bench, prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]]) -> Numbers:
    said = [[one.answer for one in group] for group in groups]
    return answer_numbers(prompts, said, bench.rewards, bench.finders)


def _answers(
    bench: Bench, loaded: LoadedModel, prompts: Sequence[Prompt], label: str, truncation: Truncation, samples: int
) -> list[list[Completion]]:
    progress = StageProgress(label, len(prompts), unit="prompt")
    found = complete(
        loaded.model,
        loaded.tokenizer,
        prompts,
        max_tokens=bench.domain.settings.max_completion_tokens,
        batch_size=bench.settings.batch_size,
        device=bench.device,
        truncation=truncation,
        samples=samples,
        seed=bench.job.seed,
        progress=lambda done: progress.show(done, {}),
    )
    progress.close()
    return found


def _of_texts(bench: Bench, measured: Measured) -> dict[str, Estimate]:
    """Return what only all answers together have: BLEU, and the diversity of greedy and of sampled ones."""
    found: dict[str, Estimate | None] = {}
    prompts, rows = measured.prompts, with_answer(measured.prompts)
    greedy = [group[0].answer.text for group in measured.greedy]
    if rows:
        wanted = [prompts[row].answer for row in rows]
        found["bleu"] = bleu([greedy[row] for row in rows], wanted, bleu_tokenizer(bench.chat, prompts), bench.job.seed)
    sampled = [one.answer.text for group in measured.sampled for one in group]
    for prefix, texts in (("", greedy), (SAMPLED, sampled)):
        found |= {f"{prefix}distinct_{n}": distinct(texts, n) for n in (1, 2)}
    return {name: value for name, value in found.items() if value is not None}


def bleu_tokenizer(chat: ChatEvaluationSettings, prompts: Sequence[Prompt]) -> str:
    """Return the name of sacrebleu's tokenizer for these prompts' answers."""
    if chat.bleu_tokenizer != "auto":
        return chat.bleu_tokenizer
    return "zh" if any(has_cjk(prompt.answer) for prompt in prompts) else "13a"


def _perplexity(bench: Bench, loaded: LoadedModel, measured: Measured) -> dict[str, Estimate]:
    """Return exp of the mean loss per token that the model had to say in held-out conversations."""
    split = bench.settings.split
    if not bench.domain.data.rows["demonstrations"][split]:
        return {}
    demonstrations = bench.domain.demonstrations(split)[: bench.settings.max_rows]
    rows = demonstration_rows(loaded.tokenizer, demonstrations, prompt_limit(loaded.model, 0))
    found = token_logprobs(loaded.model, rows, batch_size=bench.settings.batch_size, device=bench.device)
    measured.num_demonstrations = len(rows)
    loss = _per_token([-values for values in found], bench.job.seed)
    if loss is None:
        return {}
    return {"perplexity": Estimate(*np.exp([loss.value, loss.low, loss.high]).tolist())}


def _kl(bench: Bench, loaded: LoadedModel, sampled: list[list[Completion]]) -> dict[str, Estimate]:
    """Return the mean KL per token along the model's own samples, where both models share their tokens."""
    reference, size = bench.reference, bench.chat.samples
    if reference is None or not size or not same_tokens(loaded, reference):
        return {}
    rows = [one.row for group in sampled for one in group]
    batch_size, device = bench.settings.batch_size, bench.device
    found = token_kl(loaded.model, reference.model, rows, batch_size=batch_size, device=device)
    prompts = [np.concatenate(found[start : start + size]) for start in range(0, len(found), size)]
    kl = _per_token(prompts, bench.job.seed)
    return {} if kl is None else {"kl": kl}


def same_tokens(one: LoadedModel, other: LoadedModel) -> bool:
    """Return whether two models have the same vocabulary, in their tokenizers and in their heads."""

    def rows(loaded: LoadedModel) -> int:
        return int(loaded.model.get_output_embeddings().weight.shape[0])

    return rows(one) == rows(other) and one.tokenizer.get_vocab() == other.tokenizer.get_vocab()


def _ability(bench: Bench, loaded: LoadedModel) -> dict[str, Estimate]:
    limit = prompt_limit(loaded.model, 0)
    size, device = bench.settings.batch_size, bench.device
    found = {
        name: ability_hits(loaded.model, loaded.tokenizer, items, limit=limit, batch_size=size, device=device)
        for name, items in bench.items.items()
    }
    return {name: mean_with_interval(hits, seed=bench.job.seed) for name, hits in found.items()}


def _of_prompts(values: np.ndarray, seed: int) -> Estimate:
    """Return the mean over the prompts that have a number, of each prompt's mean over its answers that have one."""
    known = np.isfinite(values)
    some = known.any(axis=1)
    sums = np.where(known, values, 0.0).sum(axis=1)
    return mean_with_interval(sums[some] / known.sum(axis=1)[some], seed=seed)


def _per_token(groups: Sequence[np.ndarray], seed: int) -> Estimate | None:
    """Return the mean over all tokens of all groups; groups are resampled whole."""
    values = np.concatenate([np.zeros(0), *groups])
    owners = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    return mean_with_interval(values, owners, seed) if len(values) else None
