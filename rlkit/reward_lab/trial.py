"""Try a recipe's rewards on reference answers, on samples of the model, and on hostile answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from rlkit.errors import RecipeError, RunError
from rlkit.job import Job
from rlkit.models.load import LoadedModel
from rlkit.ops.advantages import zero_signal
from rlkit.plugins import load_plugins
from rlkit.policy.rewarder import Rewarder, WeightedReward
from rlkit.policy.rollouts import Rollouts, concat, generator_for
from rlkit.policy.sampler import RolloutRequest
from rlkit.policy.text_rewards import Outcome, Sample, samples
from rlkit.progress import StageProgress
from rlkit.recipe import Recipe
from rlkit.records import Prompt
from rlkit.reward_lab.hostile import hostile_answers, keywords_of
from rlkit.reward_lab.parts import Skipped, ask, loaded_parts, reads_text, reference, rewarded_stages
from rlkit.run_directory import RunDirectory

CHUNK = 32
"""Prompts that are completed together."""
BEATEN_SHARE = 0.05
"""A kind of hostile answer is warned of where it beats the honest ones of its prompt this often."""


@dataclass(frozen=True)
class Judged:
    """One completion with what every part said.

    Args:
        kind: reference, sample, or a kind of hostile answer.
        prompt: the record that it answers.
        completion: the text.
        outcomes: by part.
        total: the mixed score; NaN where a part gave none.
    """

    kind: str
    prompt: Prompt
    completion: str
    outcomes: dict[str, Outcome]
    total: float


@dataclass
class Trial:
    """What a trial found.

    Args:
        stage: the stage whose rewards were tried.
        judged: every completion.
        skipped: parts that could not be tried.
        zero_variance: the share of groups of samples without a difference in reward; None without samples.
        group_size: G.
        sampled_by: which model made the samples, or why there are none.
        warnings: what to look at.
    """

    stage: str
    judged: list[Judged]
    skipped: list[Skipped]
    zero_variance: float | None
    group_size: int
    sampled_by: str
    warnings: list[str] = field(default_factory=list)


def try_rewards(recipe: Recipe, run: RunDirectory, count: int, stage: str | None = None) -> Trial:
    """Try the rewards of a stage.

    Args:
        recipe: the recipe.
        run: its run directory, where models may lie.
        count: prompts.
        stage: whose rewards; none: those of the first stage that has any.

    Raises:
        RecipeError: no stage learns from rewards, none of them can be tried yet, or there is nothing to try them on.
    """
    stages = dict(rewarded_stages(recipe))
    if not stages or (stage is not None and stage not in stages):
        known = ", ".join(stages) or "none"
        raise RecipeError(f"--stage: no stage {stage or ''} learns from rewards; those that do: {known}")
    name = stage or next(iter(stages))
    job = Job(recipe, load_plugins(), run, name)
    loaded, origin = _model(job)
    with loaded_parts(job, stages[name]) as (parts, skipped):
        if not parts:
            raise RecipeError(
                f"stages.{name}.algorithm.rewards: none can be tried before a run: "
                + "; ".join(f"{part.name} {part.reason}" for part in skipped)
            )
        prompts = job.domain.prompts("train", count)
        judged = _texts(parts, prompts, [keyword for part in parts for keyword in keywords_of(part.settings)])
        rollouts = _sampled(job, loaded, prompts) if origin else None
        zero = None
        if rollouts is not None:
            zero, more = _of_rollouts(parts, rollouts, loaded, job)
            judged += more
    if not judged:
        raise RecipeError(
            f"stages.{name}.algorithm.rewards: nothing to try: they score rollouts, and no model is trained that makes "
            "some; name a run whose earlier stages are finished with --run DIR"
        )
    trial = Trial(name, judged, skipped, zero, job.settings.algorithm.group_size, origin or "no trained model yet")
    trial.warnings += [*_warnings(trial), *_shut_gates(parts, trial)]
    return trial


def _model(job: Job) -> tuple[LoadedModel, str]:
    """Return the model that the stage would start from, and its name; empty: a preset that knows nothing yet."""
    try:
        start = job.start_model()
    except RunError:
        start = None  # not trained yet
    loaded = job.load_model_at(start)
    if start is not None:
        return loaded, start.parent.name
    return loaded, "the recipe's model" if getattr(job.model, "path", None) else ""


def _texts(parts: Sequence[WeightedReward], prompts: Sequence[Prompt], keywords: Sequence[str]) -> list[Judged]:
    """Judge reference answers and hostile ones, by the parts that read text."""
    readers = [part for part in parts if reads_text(part)]
    if not readers:
        return []
    golds = [min(reference(part, prompt) for part in readers) for prompt in prompts]  # empty where one part has none
    others = list(dict.fromkeys(filter(None, golds)))[:8]
    rows = [("reference", prompt, gold) for prompt, gold in zip(prompts, golds) if gold]
    for prompt, gold in zip(prompts, golds):
        found = hostile_answers(replace(prompt, answer=gold), others, keywords)
        rows += [(kind, prompt, text) for kind, text in found]
    asked = [Sample(prompt.text, text, prompt.answer, False, prompt.context) for _, prompt, text in rows]
    progress = StageProgress("reference and hostile answers", len(readers), unit="reward")
    said: dict[str, list[Outcome]] = {}
    for done, part in enumerate(readers, 1):
        said[part.name] = ask(part, asked)
        progress.show(done, {})
    progress.close()
    return [
        Judged(kind, prompt, text, {name: values[index] for name, values in said.items()},
               _total(readers, {name: values[index].score for name, values in said.items()}))
        for index, (kind, prompt, text) in enumerate(rows)
    ]  # fmt: skip


def _total(parts: Sequence[WeightedReward], scores: dict[str, float]) -> float:
    """Return the mixed score of one completion; what compares a group is left out."""
    total, gate = 0.0, 1.0
    for part in parts:
        score = scores[part.name]
        if part.settings.clip is not None and not math.isnan(score):
            score = min(max(score, part.settings.clip[0]), part.settings.clip[1])
        if part.settings.gate:
            gate *= part.weight * score
        else:
            total += part.weight * score
    return total * gate


def _sampled(job: Job, loaded: LoadedModel, prompts: Sequence[Prompt]) -> Rollouts:
    """Complete the prompts as the stage would."""
    settings, device = job.settings.algorithm, torch.device(job.engine.device)
    job.engine.prepare()
    rollout = job.load("rollout", settings.rollout)
    constraint = job.domain.constraint
    lm = loaded.model.to(device).eval()
    progress = StageProgress("samples", len(prompts), unit="prompt")
    made = []
    for start in range(0, len(prompts), CHUNK):
        part = prompts[start : start + CHUNK]
        request = RolloutRequest(
            lm=lm,
            tokenizer=loaded.tokenizer,
            prompts=part,
            group_size=settings.group_size,
            constraint=None if constraint is None else constraint.to(device),
            normalization=job.domain.normalization,
            alive=None,
            generators=[generator_for(job.seed, "trial", prompt.key) for prompt in part],
            device=device,
        )
        with torch.no_grad():
            made.append(rollout(request))
        progress.show(start + len(part), {})
    progress.close()
    return concat(made)


def _of_rollouts(
    parts: Sequence[WeightedReward], rollouts: Rollouts, loaded: LoadedModel, job: Job
) -> tuple[float | None, list[Judged]]:
    """Judge samples; returns the share of groups without a difference, and every sample."""
    texts = samples(rollouts, loaded.tokenizer)
    spots = rollouts.present.nonzero().tolist()  # before those without a score are taken out
    rewarder = Rewarder(parts, job.engine.device)
    rewarder(rollouts)
    kept = rollouts.present
    zero = None if kept.shape[1] == 1 or not kept.any() else float(zero_signal(rollouts.rewards, kept).float().mean())
    judged = []
    for place, (text, (row, column)) in enumerate(zip(texts, spots)):
        there = bool(kept[row, column])
        said = {part.name: _outcome(part, rollouts, place, (row, column)) for part in parts}
        outcomes = {name: outcome for name, outcome in said.items() if outcome is not None}
        total = float(rollouts.rewards[row, column]) if there else math.nan
        judged.append(Judged("sample", rollouts.prompts[row], text.completion, outcomes, total))
    return zero, judged


def _outcome(part: WeightedReward, rollouts: Rollouts, place: int, spot: tuple[int, int]) -> Outcome | None:
    """Return what a part said about a sample; None where it scores rollouts, and another part took the sample out."""
    outcomes = getattr(part.score, "outcomes", None)
    if outcomes:
        return outcomes[place]
    return Outcome(float(rollouts.parts[part.name][spot])) if rollouts.present[spot] else None


def _shut_gates(parts: Sequence[WeightedReward], trial: Trial) -> list[str]:
    """Say which gates are 0 for all that the model says, or, without samples, for all reference answers."""
    kinds = {row.kind for row in trial.judged}
    kind = "sample" if "sample" in kinds else "reference"
    found = []
    for name in [part.name for part in parts if part.settings.gate]:
        scores = [row.outcomes[name].score for row in trial.judged if row.kind == kind and name in row.outcomes]
        if scores and all(score == 0 for score in scores):
            found.append(
                f"{name}: this gate is 0 for all of {len(scores)} {kind} answers, so that they earn nothing; ask for "
                "what it wants in domain.system, show it in demonstrations, or take gate out"
            )
    return found


def _warnings(trial: Trial) -> list[str]:
    """Say what a run would stumble over."""
    found = []
    honest: dict[str, float] = {}
    for row in trial.judged:
        if row.kind in ("reference", "sample") and not math.isnan(row.total):
            honest[row.prompt.key] = max(honest.get(row.prompt.key, -math.inf), row.total)
    kinds = list(dict.fromkeys(row.kind for row in trial.judged if row.kind not in ("reference", "sample")))
    for kind in kinds:
        rows = [row for row in trial.judged if row.kind == kind and row.prompt.key in honest]
        beaten = [row for row in rows if row.total > honest[row.prompt.key] + 1e-9]
        if rows and len(beaten) > BEATEN_SHARE * len(rows):
            found.append(
                f"{kind}: beats every honest answer on {len(beaten)} of {len(rows)} prompts (such as "
                f"{beaten[0].prompt.source}); a policy will find it: add a gate, a format rule or a length band"
            )
    known = [row for row in trial.judged if not math.isnan(row.total)]
    references = [row.total for row in known if row.kind == "reference"]
    if references and kinds and len({round(row.total, 6) for row in known}) == 1:
        found.append(
            f"all {len(known)} completions earn {references[0]:g}, hostile ones as well as references; the reward "
            "tells nothing apart: mend it"
        )
    if references and np.mean(references) < max(row.total for row in known) / 2:
        found.append("reference answers earn less than half of the best answer; is the reward about this data?")
    if trial.zero_variance is not None and trial.zero_variance > 0.5:
        found.append(
            f"{trial.zero_variance:.0%} of groups have no difference in reward, so nothing to learn from; raise "
            "group_size or the temperature, start from a better model, or give partial credit"
        )
    for name in {name for row in trial.judged for name, outcome in row.outcomes.items() if outcome.error}:
        errors = [row for row in trial.judged if name in row.outcomes and row.outcomes[name].error]
        found.append(
            f"{name}: no score for {len(errors)} of {len(trial.judged)} completions, such as {errors[0].prompt.source} "
            f"({errors[0].kind}): {errors[0].outcomes[name].error}"
        )
    return found
