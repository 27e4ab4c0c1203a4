"""Numbers of single answers: right or not, length, overlap with the reference answer, phrases, rewards.

Every number has the shape (R, S): R prompts, S answers of each; NaN where there is nothing to measure. Answers that a
reward could not score are counted as ``unscored/`` with its name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlkit.chat.answers import is_exact
from rlkit.chat.evaluation_data import REFUSALS, read_phrases
from rlkit.chat.metrics import OPENING, phrase_finder, rouge, wins
from rlkit.config.stages import ChatEvaluationSettings
from rlkit.errors import RecipeError, TrainingError
from rlkit.ops.pass_at_k import pass_at_k
from rlkit.policy.rewarder import WeightedReward
from rlkit.policy.supervised import judge
from rlkit.policy.text_rewards import Answer, Sample, TextReward
from rlkit.records import Prompt

logger = logging.getLogger("rlkit")

REWARD, WIN_RATE, UNSCORED = "reward/", "win_rate/", "unscored/"
Numbers = dict[str, np.ndarray]
Finders = dict[str, Callable[[str], bool]]


def answer_numbers(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Answer]],
    rewards: Sequence[WeightedReward],
    finders: Finders,
) -> Numbers:
    """Return what can be said of each answer by itself.

    Args:
        prompts: R prompts.
        answers: S of each.
        rewards: score each answer.
        finders: name -> whether a text contains certain phrases.

    Raises:
        TrainingError: a reward gives a number that is infinite, or does not end.
    """
    pairs = [(prompt, answer) for prompt, group in zip(prompts, answers) for answer in group]
    found: dict[str, list[float]] = {}
    if any(prompt.answer for prompt in prompts):
        found["exact_match"] = [
            float(is_exact(answer, prompt.answer)) if prompt.answer else np.nan for prompt, answer in pairs
        ]
    found["truncated"] = [float(answer.truncated) for _, answer in pairs]
    found["completion_length"] = [float(answer.tokens) for _, answer in pairs]
    found |= {name: [float(contains(answer.text)) for _, answer in pairs] for name, contains in finders.items()}
    for reward in rewards:
        found |= _rewarded(reward, pairs)
    shape = (len(prompts), len(answers[0]) if answers else 0)
    return {name: np.array(values, dtype=np.float64).reshape(shape) for name, values in found.items()}


def _rewarded(reward: WeightedReward, pairs: Sequence[tuple[Prompt, Answer]]) -> dict[str, list[float]]:
    """Return a reward's scores; where answers have none, also which: those are wrong where the reward verifies.

    If they were left out there, a model would be measured on the answers that can be checked alone.

    Raises:
        TrainingError: there is not one number for each answer, or one is infinite.
    """
    samples = [Sample(one.text, said.text, one.answer, said.truncated, one.context) for one, said in pairs]
    scored: Any = reward.score
    outcomes = judge(scored, reward.name, reward.settings, samples)
    scores = np.array([outcome.score for outcome in outcomes], dtype=np.float64)
    if len(scores) != len(samples) or np.isinf(scores).any():
        raise TrainingError(
            f"reward {reward.name}: must return {len(samples)} finite numbers, got {len(scores)}, "
            f"{int(np.isinf(scores).sum())} of them infinite; look at the reward's code"
        )
    lost = np.isnan(scores)
    if not lost.any():
        return {REWARD + reward.name: scores.tolist()}
    verifies, first = reward.settings.verifies, int(lost.argmax())
    logger.warning(
        "reward %s: %d of %d answers have no score and %s, such as one to %s: %s",
        reward.name,
        lost.sum(),
        len(lost),
        "count as 0" if verifies else "are left out",
        pairs[first][0].source,
        outcomes[first].error,
    )
    scores[lost] = 0.0 if verifies else np.nan
    return {REWARD + reward.name: scores.tolist(), UNSCORED + reward.name: lost.astype(float).tolist()}


def check_rewards(rewards: Sequence[WeightedReward], stage: str) -> None:
    """Refuse rewards that need rollouts.

    Raises:
        RecipeError: one of them cannot judge samples.
    """
    wrong = [reward.name for reward in rewards if not isinstance(reward.score, TextReward)]
    if wrong:
        raise RecipeError(
            f"stages.{stage}.chat.rewards: cannot score texts alone, got {', '.join(wrong)}; "
            "build it as a TextReward, or leave it out"
        )


def phrase_finders(settings: ChatEvaluationSettings) -> Finders:
    """Return the tests for forbidden phrases and for refusals that the settings ask for."""
    forbidden = [*settings.forbidden, *(read_phrases(settings.forbidden_file) if settings.forbidden_file else ())]
    finders: Finders = {}
    if forbidden:
        finders["forbidden"] = phrase_finder(forbidden)
    if settings.refusals:
        finders["refused"] = phrase_finder(REFUSALS, within=OPENING)
    return finders


def overlap_numbers(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Numbers:
    """Return (R, 1) ROUGE of each answer with its prompt's; NaN where the prompt has none."""
    rows = with_answer(prompts)
    found = rouge([answers[row].text for row in rows], [prompts[row].answer for row in rows])
    result = {}
    for name, values in found.items() if rows else ():
        result[name] = np.full((len(prompts), 1), np.nan)
        result[name][rows, 0] = values
    return result


def with_answer(prompts: Sequence[Prompt]) -> list[int]:
    """Return the indices of the prompts that have a reference answer."""
    return [index for index, prompt in enumerate(prompts) if prompt.answer]


def pass_numbers(sampled: Numbers, pass_at: Sequence[int]) -> Numbers:
    """Return (R, 1) pass@k of every number that says right or wrong, NaN where it says nothing of a prompt.

    Args:
        sampled: numbers (R, S) of sampled answers.
        pass_at: every k; those above S are left out.
    """
    found: Numbers = {}
    for name, values in sampled.items():
        size, known = values.shape[1], np.isfinite(values).all(axis=1)
        judges = name == "exact_match" or name.startswith(REWARD)
        if size < 2 or not judges or not known.any() or not np.isin(values[known], (0.0, 1.0)).all():
            continue
        for k in (k for k in pass_at if k <= size):
            key = f"pass@{k}" if name == "exact_match" else f"pass@{k}/{name.removeprefix(REWARD)}"
            found[key] = np.full((len(values), 1), np.nan)
            found[key][known, 0] = pass_at_k(values[known].sum(axis=1), size, k)
    return found


def win_numbers(ours: Numbers, theirs: Numbers) -> Numbers:
    """Return by every reward whether our k-th answer to a prompt beats their k-th one."""
    names = [name.removeprefix(REWARD) for name in ours if name.startswith(REWARD)]
    return {WIN_RATE + name: wins(ours[REWARD + name], theirs[REWARD + name]) for name in names}
