"""Rewards before a run: servers, sandbox, reference answers, golden cases."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from rlkit.errors import RlkitError
from rlkit.job import Job
from rlkit.policy.rewarder import WeightedReward
from rlkit.policy.text_rewards import Outcome, Sample
from rlkit.preflight.line import Line, count
from rlkit.records import Prompt
from rlkit.reward_lab.cases import check_cases
from rlkit.reward_lab.parts import ask, bind_tokenizer, loaded_parts, reads_text, reference

REFERENCES = 64
"""Reference answers that each reward is tried on at most."""
CHUNK = 8
SECONDS = 10.0
"""After so long no further reference answers are tried, so that a slow reward is not waited for."""
MOST = 0.9
"""The share of reference answers that fail, or get nothing, from which a reward does not fit its data."""
FORMS = ("\\boxed{{{}}}", "#### {}", "<answer>{}</answer>")
"""How else a right answer may have to be said, where it earns nothing as it stands."""

SHUT = (
    "a gate, so that answers of this kind earn nothing; ask for what it wants in domain.system, "
    "or show it in demonstrations"
)
"""Said of a gate through which no reference answer comes."""


def reward_lines(job: Job) -> Iterator[Line]:
    """Yield how each reward of a stage does on reference answers, or why it cannot be tried."""
    rewards = getattr(job.settings.algorithm, "rewards", ())
    prompts: list[Prompt] | None = None
    for place, settings in enumerate(rewards):
        subject = f"reward {settings.type}" if len(rewards) == 1 else f"reward {place} {settings.type}"
        try:
            if hasattr(settings, "needs_artefact"):
                yield Line("later", subject, _where_from(job, settings))
                continue
            settings.check_online()
            with loaded_parts(job, [settings]) as ((part,), _):
                if not reads_text(part):
                    yield Line("later", subject, "scores rollouts, of which there are none yet")
                    continue
                prompts = _references(job) if prompts is None else prompts
                yield _tried(subject, part, prompts)
                yield from _isolation(part)
        except RlkitError as error:
            said = [problem.removeprefix(f"reward {settings.type}: ") for problem in error.problems]
            yield Line("failed", subject, "; ".join(said))


def _where_from(job: Job, settings: Any) -> str:
    """Return which model a learned reward waits for; none is loaded here, since that may take minutes."""
    named = getattr(settings, "path", None) or ", ".join(getattr(settings, "paths", ()))
    stages = [getattr(settings, "stage", None), *reversed(job.trained_stages(settings.needs_artefact))]
    return f"needs the {settings.needs_artefact} of {named or next(filter(None, stages), 'an earlier stage')}"


def _references(job: Job) -> list[Prompt]:
    """Return prompts with answers, rendered by the recipe's tokenizer; none where that comes from a plugin."""
    if not bind_tokenizer(job):
        return []
    return [prompt for prompt in job.domain.prompts("train", REFERENCES) if prompt.answer]


def _tried(subject: str, part: WeightedReward, prompts: Sequence[Prompt]) -> Line:
    if not prompts:
        return Line("note", subject, "not tried: there are no reference answers; `rlkit rewards try` tries samples")
    prompts = [prompt for prompt in prompts if reference(part, prompt)]
    if not prompts:
        return Line(
            "note",
            subject,
            "not tried: rows hold checks, and no answer that passes them; `rlkit rewards try` tries samples",
        )
    verifies = getattr(part.settings, "verifies", False)
    outcomes, started = [], time.monotonic()
    for start in range(0, len(prompts), CHUNK):
        outcomes += _judged(part, prompts[start : start + CHUNK], verifies)
        if time.monotonic() - started > SECONDS:
            break
    if part.settings.gate and all(outcome.score == 0 for outcome in outcomes) and not verifies:
        return Line("note", subject, f"0 for all of {count(len(outcomes), 'reference answers')}; {SHUT}")
    return _verdict(subject, outcomes, prompts, verifies)


def _judged(part: WeightedReward, prompts: Sequence[Prompt], verifies: bool) -> list[Outcome]:
    """Return what a reward says about reference answers; for one that verifies, the best of several forms."""
    outcomes = _ask(part, prompts, "{}")
    for form in FORMS if verifies else ():
        spots = [spot for spot, outcome in enumerate(outcomes) if outcome.score <= 0]
        for spot, outcome in zip(spots, _ask(part, [prompts[spot] for spot in spots], form) if spots else ()):
            outcomes[spot] = outcome if outcome.score > 0 else outcomes[spot]
    return outcomes


def _ask(part: WeightedReward, prompts: Sequence[Prompt], form: str) -> list[Outcome]:
    samples = [
        Sample(prompt.text, form.format(reference(part, prompt)), prompt.answer, False, prompt.context)
        for prompt in prompts
    ]
    return ask(part, samples)


def _verdict(subject: str, outcomes: Sequence[Outcome], prompts: Sequence[Prompt], verifies: bool) -> Line:
    """Say how a reward did; one that verifies and finds nearly no right answer right fails, as one that breaks does."""
    of = f"of {count(len(outcomes), 'reference answers')}"
    lost = [spot for spot, outcome in enumerate(outcomes) if outcome.error]
    nothing = [spot for spot, outcome in enumerate(outcomes) if outcome.score <= 0] if verifies else []
    if len(lost) + len(nothing) >= MOST * len(outcomes):
        told = [f"{len(lost)} {of} get no score, such as {_told(lost[0], outcomes, prompts)}"] if lost else []
        told += [f"{len(nothing)} {of} get 0, such as {_told(nothing[0], outcomes, prompts)}"] if nothing else []
        return Line("failed", subject, f"{'; '.join(told)}; mend the answers or the reward (try: rlkit rewards try)")
    scores = [outcome.score for outcome in outcomes if not outcome.error]
    if verifies:
        found = f"{sum(score >= 1 for score in scores)} {of} get the best score, 1"
        worse = next((spot for spot, outcome in enumerate(outcomes) if not outcome.score >= 1), None)
    else:
        found = f"{sum(scores) / len(scores):.3g} on average {of}, {min(scores):.3g} to {max(scores):.3g}"
        worse = lost[0] if lost else None
    if worse is None:
        return Line("ok", subject, found)
    return Line("note", subject, f"{found}; not so {_told(worse, outcomes, prompts)}")


def _told(spot: int, outcomes: Sequence[Outcome], prompts: Sequence[Prompt]) -> str:
    outcome, answer = outcomes[spot], prompts[spot].answer
    shown = repr(answer if len(answer) <= 60 else f"{answer[:57]}...")
    return f"{prompts[spot].source}: {outcome.error or f'{outcome.score:g} for {shown}'}"


def _isolation(part: WeightedReward) -> Iterator[Line]:
    """Yield what keeps the code of completions apart from this host, where a reward runs any."""
    sandbox: Any = getattr(part.score, "sandbox", None)
    if sandbox is not None:
        weak = sandbox.level == "rlimits"
        layers = ", ".join(sandbox.layers) or "limits only"
        advice = "; stops accidents, not every attack (`rlkit doctor`)" if weak else ""
        yield Line("note" if weak else "ok", "sandbox", f"isolation {sandbox.level} ({layers}){advice}")


def case_lines(job: Job) -> Iterator[Line]:
    """Yield how the golden cases of the recipe do; nothing where it has none."""
    report = check_cases(job.recipe, job.run)
    for skipped in report.skipped:
        yield Line("later", f"golden cases of {skipped.name}", skipped.reason)
    if report.problems:
        for problem in report.problems:
            yield Line("failed", "golden case", f"{'.'.join(map(str, problem.keys))}: {problem.message}")
    elif report.checked:
        yield Line("ok", "golden cases", f"{count(report.checked, 'cases')} scored as they should")
