"""Golden cases: completions in the recipe whose score is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlkit.config.rewards import RewardCase
from rlkit.errors import RlkitError
from rlkit.job import Job
from rlkit.plugins import load_plugins
from rlkit.policy.rewarder import WeightedReward
from rlkit.policy.text_rewards import Outcome, Sample
from rlkit.recipe import Recipe
from rlkit.recipe_errors import Problem
from rlkit.reward_lab.parts import Skipped, ask, bind_tokenizer, loaded_parts, reads_text, rewarded_stages
from rlkit.run_directory import RunDirectory


@dataclass(frozen=True)
class CaseReport:
    """What the cases of a recipe came to.

    Args:
        checked: how many were scored.
        problems: each that got another score, by its place in the recipe.
        skipped: rewards with cases that cannot be scored yet.
    """

    checked: int
    problems: list[Problem]
    skipped: list[Skipped]


def check_cases(recipe: Recipe, run: RunDirectory) -> CaseReport:
    """Score all golden cases of a recipe.

    Args:
        recipe: the recipe.
        run: its run directory, where trained reward models may lie.
    """
    checked, problems, skipped = 0, [], []
    for stage, rewards in rewarded_stages(recipe):
        job = Job(recipe, load_plugins(), run, stage)
        for place, settings in enumerate(rewards):
            if not settings.cases:
                continue
            keys = ("stages", stage, "algorithm", "rewards", place)
            try:
                found, missing = _of_one(job, settings)
            except RlkitError as error:
                problems += [Problem(keys, problem) for problem in error.problems]
                continue
            skipped += missing
            checked += 0 if missing else len(settings.cases)
            problems += [Problem((*keys, "cases", index), message) for index, message in found]
    return CaseReport(checked, problems, skipped)


def _of_one(job: Job, settings: Any) -> tuple[list[tuple[int, str]], list[Skipped]]:
    """Score the cases of one reward; returns those that are wrong, and why they could not be scored."""
    with loaded_parts(job, [settings]) as (parts, missing):
        if missing:
            return [], missing
        (part,) = parts
        reason = _unscorable(part, job)
        return ([], [Skipped(part.name, reason)]) if reason else (_wrong(part), [])


def _unscorable(part: WeightedReward, job: Job) -> str:
    """Return why the cases of a part cannot be scored; empty where they can."""
    if not reads_text(part):
        return "scores rollouts, not text"
    if getattr(part.score, "counts_tokens", False) and not bind_tokenizer(job):
        return "counts tokens, and the model that does so comes from a plugin"
    return ""


def _wrong(part: WeightedReward) -> list[tuple[int, str]]:
    """Score the cases of a part; returns those with another score than they should have, by their index."""
    cases = part.settings.cases
    outcomes = ask(part, [_sample(part, case) for case in cases])
    return [
        (
            index,
            f"{part.name} gives {_said(outcome)}, {_expected(case)}, for {case.completion[:60]!r}; "
            "mend the reward or the case",
        )
        for index, (case, outcome) in enumerate(zip(cases, outcomes))
        if case.wrong(outcome.score)
    ]


def _sample(part: WeightedReward, case: RewardCase) -> Sample:
    """Return what a part reads of a case; a learned one reads the prompt in its chat template, as in a run."""
    render = getattr(part.score, "render", None)
    prompt = render([{"role": "user", "content": case.prompt}]) if render and case.prompt else case.prompt
    return Sample(prompt, case.completion, case.answer, case.truncated, case.context)


def _said(outcome: Outcome) -> str:
    return f"no score ({outcome.error})" if outcome.error else f"{outcome.score:g}"


def _expected(case: object) -> str:
    wanted = {"score": "not", "at_least": "not at least", "at_most": "not at most"}
    said = [f"{words} {getattr(case, name):g}" for name, words in wanted.items() if getattr(case, name) is not None]
    return " and ".join(said)
