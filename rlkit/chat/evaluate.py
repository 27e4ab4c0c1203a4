"""Evaluation of chat models, beside the most frequent answer of train.

``eval.json`` holds every model's metrics with 95 % intervals, ``answers.jsonl`` what the last one said (that of each
other model lies beside it), with the numbers of each answer. Nothing in them depends on the clock or the place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from rlkit.chat.answer_numbers import Numbers
from rlkit.chat.evaluated import STARTING_MODEL, Evaluated, evaluated_models
from rlkit.chat.measure import Bench, Measured, bleu_tokenizer, measure
from rlkit.chat.metrics import Estimate, mean_with_interval
from rlkit.config.stages import EvaluateStageSettings
from rlkit.job import Job
from rlkit.models.load import LoadedModel
from rlkit.records import Prompt
from rlkit.run_directory import write_atomically

if TYPE_CHECKING:
    from rlkit.chat.domain import ChatDomain

DIGITS = 6


def evaluate(job: Job, domain: ChatDomain) -> dict[str, Any]:
    """Measure each model on a split, write ``eval.json`` and the answers, and return the report.

    Raises:
        RecipeError: the recipe trains no model, or a reward cannot score texts.
    """
    settings: EvaluateStageSettings = job.settings
    plan = evaluated_models(job)
    job.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(job, domain)
    try:
        found = _measure_all(bench, plan)
    finally:
        bench.close()
    for one in found.values():
        _write_answers(job, plan, one)
    rows = [{"name": name, "kind": "model", **_figures(found[name].summary(job.seed))} for name in plan.names]
    result = found[plan.result]
    if settings.baselines and (baseline := _most_frequent(domain, result.prompts, job.seed)):
        rows.append(baseline)
    figures = next(row for row in rows if row["name"] == plan.result)
    report = {
        "metrics": figures["metrics"],
        "ci95": figures["ci95"],
        "n": len(result.prompts),
        "rows": rows,
        "measured": _facts(bench, plan, result),
    }
    write_atomically(job.folder / "eval.json", json.dumps(report, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
    return report


def _measure_all(bench: Bench, plan: Evaluated) -> dict[str, Measured]:
    """Measure the reference first, since others are compared with it, and keep it loaded for them."""
    found: dict[str, Measured] = {}
    for name in sorted(plan.names, key=lambda name: name != plan.reference):
        loaded = _load(bench, name)
        found[name] = measure(bench, name, loaded)
        if name == plan.reference:
            bench.reference, bench.first = loaded, found[name]
    return found


def _load(bench: Bench, name: str) -> LoadedModel:
    job = bench.job
    if name != STARTING_MODEL:
        loaded = job.load_model(job.model_of(name))
    else:
        bench.domain.prepare(None)
        target = job.registry.get("model", job.model.type).load()
        loaded = target(job.model, path=None, new_tokens=bench.domain.new_tokens, seed=job.seed)
        bench.domain.bind(loaded.tokenizer)
    loaded.model.to(bench.device).eval()
    return loaded


def _figures(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        "metrics": {name: round(one.value, DIGITS) for name, one in estimates.items()},
        "ci95": {name: [round(one.low, DIGITS), round(one.high, DIGITS)] for name, one in estimates.items()},
    }


def _facts(bench: Bench, plan: Evaluated, result: Measured) -> dict[str, Any]:
    """Return what the figures are of; what is not there is left out."""
    chat = bench.chat
    facts: dict[str, Any] = {
        "reference": plan.reference,
        "samples": chat.samples,
        "temperature": chat.temperature if chat.samples else None,
        "top_p": chat.top_p if chat.samples else None,
        "demonstrations": result.num_demonstrations,
        "bleu_tokenizer": bleu_tokenizer(chat, result.prompts) if "bleu" in result.estimates else None,
        "chance": bench.chances,
    }
    return {name: value for name, value in facts.items() if value}


def _most_frequent(domain: ChatDomain, prompts: Sequence[Prompt], seed: int) -> dict[str, Any] | None:
    """Return the row of always saying what train's prompts are answered with most often; None without answers."""
    known = domain.prompts("train") if domain.data.rows["prompts"]["train"] else []
    counts = Counter(prompt.answer.strip() for prompt in known if prompt.answer)
    if not counts or not any(prompt.answer for prompt in prompts):
        return None
    guess, _ = min(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    right = np.array([float(prompt.answer.strip() == guess) for prompt in prompts if prompt.answer])
    figures = _figures({"exact_match": mean_with_interval(right, seed=seed)})
    return {"name": "most frequent answer", "kind": "baseline", "settings": {"answer": guess}, **figures}


# ---- answers


def _write_answers(job: Job, plan: Evaluated, measured: Measured) -> None:
    slug = measured.name.replace(" ", "-")
    file = "answers.jsonl" if measured.name == plan.result else f"answers-{slug}.jsonl"
    lines = [json.dumps(_line(measured, index), ensure_ascii=False) for index in range(len(measured.prompts))]
    write_atomically(job.folder / file, "".join(line + "\n" for line in lines))


def _line(measured: Measured, index: int) -> dict[str, Any]:
    prompt, answer = measured.prompts[index], measured.greedy[index][0].answer
    numbers = _numbers(measured.numbers, index, 0)
    row = {
        "source": f"{PurePath(prompt.source.path).name}:{prompt.source.line}",
        "prompt": prompt.text,
        "answer": prompt.answer,
        "completion": answer.text,
        "exact_match": numbers.get("exact_match") == 1,
        "truncated": answer.truncated,
        "metrics": numbers,
    }
    samples = [
        {"completion": one.answer.text, "metrics": _numbers(measured.sampled_numbers, index, place)}
        for place, one in enumerate(measured.sampled[index])
    ]
    return row | ({"samples": samples} if samples else {})


def _numbers(numbers: Numbers, index: int, place: int) -> dict[str, float]:
    found = {name: float(values[index, place]) for name, values in numbers.items()}
    return {name: round(value, DIGITS) for name, value in found.items() if np.isfinite(value)}
