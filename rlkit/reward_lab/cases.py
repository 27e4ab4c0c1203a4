"""Golden cases: completions in the recipe whose score is known."""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.job import Job
from rlkit.plugins import load_plugins
from rlkit.policy.supervised import judge
from rlkit.policy.text_rewards import Outcome, Sample
from rlkit.recipe import Recipe
from rlkit.recipe_errors import Problem
from rlkit.reward_lab.parts import Skipped, bind_tokenizer, close, load_parts, reads_text, rewarded_stages
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
        with_cases = [(place, settings) for place, settings in enumerate(rewards) if settings.cases]
        for place, settings in with_cases:
            parts, missing = load_parts(job, [settings])
            skipped += missing
            for part in parts:
                if not reads_text(part):
                    skipped.append(Skipped(part.name, "scores rollouts, not text"))
                    continue
                if getattr(part.score, "counts_tokens", False) and not bind_tokenizer(job):
                    skipped.append(Skipped(part.name, "counts tokens, and the model that does so comes from a plugin"))
                    continue
                samples = [
                    Sample(case.prompt, case.completion, case.answer, case.truncated, case.context)
                    for case in settings.cases
                ]
                outcomes = judge(part.score, part.name, settings, samples)  # type: ignore[arg-type]
                checked += len(outcomes)
                problems += [
                    Problem(
                        ("stages", stage, "algorithm", "rewards", place, "cases", index),
                        f"{part.name} gives {_said(outcome)}, {_expected(case)}, for {case.completion[:60]!r}; "
                        "mend the reward or the case",
                    )
                    for index, (case, outcome) in enumerate(zip(settings.cases, outcomes))
                    if case.wrong(outcome.score)
                ]
            close(parts)
    return CaseReport(checked, problems, skipped)


def _said(outcome: Outcome) -> str:
    return f"no score ({outcome.error})" if outcome.error else f"{outcome.score:g}"


def _expected(case: object) -> str:
    wanted = {"score": "not", "at_least": "not at least", "at_most": "not at most"}
    said = [f"{words} {getattr(case, name):g}" for name, words in wanted.items() if getattr(case, name) is not None]
    return " and ".join(said)
