"""Evaluation of chat models: the greedy answer of each prompt (pass@1), beside the most frequent answer of train.

``eval.json`` holds the result's metrics with 95 % intervals (bootstrap over rows), ``answers.jsonl`` what was said.
Nothing in them depends on the clock or the place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from rlkit.chat.answers import greedy_answers, is_exact
from rlkit.config.stages import EvaluateStageSettings
from rlkit.errors import RecipeError
from rlkit.job import Job
from rlkit.ops.bootstrap import bootstrap_intervals
from rlkit.policy.text_rewards import Answer
from rlkit.progress import StageProgress
from rlkit.records import Prompt
from rlkit.run_directory import write_atomically

if TYPE_CHECKING:
    from rlkit.chat.domain import ChatDomain

METRICS = ("exact_match", "truncated", "completion_length")


def evaluate(job: Job, domain: ChatDomain) -> dict[str, Any]:
    """Answer the split's prompts with each model, write ``eval.json`` and ``answers.jsonl``, and return the report.

    Raises:
        RecipeError: the recipe trains no model.
    """
    settings: EvaluateStageSettings = job.settings
    names = list(settings.models) or job.trained_stages()
    if not names:
        raise RecipeError(f"stages.{job.stage}: the recipe trains no model; add a train stage before it")
    job.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        prompts, answers = _answer(job, domain, name)
        rows.append({"name": name, "kind": "model", **_numbers(prompts, answers, job.seed)})
        file = "answers.jsonl" if name == names[-1] else f"answers-{name}.jsonl"
        write_atomically(job.folder / file, "".join(_line(*pair) for pair in zip(prompts, answers)))
    result = rows[-1]
    if settings.baselines:
        rows.append({"name": "most frequent answer", "kind": "baseline", **_most_frequent(domain, prompts, job.seed)})
    report = {"metrics": result["metrics"], "ci95": result["ci95"], "n": len(prompts), "rows": rows}
    write_atomically(job.folder / "eval.json", json.dumps(report, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
    Console().print(_table(rows))
    return report


def _answer(job: Job, domain: ChatDomain, name: str) -> tuple[list[Prompt], list[Answer]]:
    settings: EvaluateStageSettings = job.settings
    loaded = job.load_model(job.model_of(name))
    device = torch.device(job.engine.device)
    prompts = domain.prompts(settings.split)[: settings.max_rows]
    progress = StageProgress(f"{job.stage} {name}", len(prompts), unit="prompt")
    answers = greedy_answers(
        loaded.model.to(device).eval(),
        loaded.tokenizer,
        prompts,
        max_tokens=domain.settings.max_completion_tokens,
        batch_size=settings.batch_size,
        device=device,
        progress=lambda done: progress.show(done, {}),
    )
    progress.close()
    return prompts, answers


def _numbers(prompts: Sequence[Prompt], answers: Sequence[Answer], seed: int) -> dict[str, Any]:
    values = [
        (is_exact(answer, prompt.answer), answer.truncated, answer.tokens) for prompt, answer in zip(prompts, answers)
    ]
    return _summary(np.asarray(values, dtype=np.float64), METRICS, seed)


def _most_frequent(domain: ChatDomain, prompts: Sequence[Prompt], seed: int) -> dict[str, Any]:
    counts = Counter(row.answer.strip() for row in domain.data.splits["train"])
    guess, _ = min(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    right = np.asarray([[prompt.answer.strip() == guess] for prompt in prompts], dtype=np.float64)
    return {"settings": {"answer": guess}, **_summary(right, METRICS[:1], seed)}


def _summary(values: np.ndarray, names: Sequence[str], seed: int) -> dict[str, Any]:
    """Return means and intervals of values (R, M)."""
    intervals = bootstrap_intervals(values, np.arange(len(values)), seed).tolist()
    means = values.mean(axis=0).tolist()
    return {
        "metrics": {name: round(mean, 6) for name, mean in zip(names, means)},
        "ci95": {name: [round(low, 6), round(high, 6)] for name, (low, high) in zip(names, intervals)},
    }


def _line(prompt: Prompt, answer: Answer) -> str:
    row = {
        "source": f"{PurePath(prompt.source.path).name}:{prompt.source.line}",
        "prompt": prompt.text,
        "answer": prompt.answer,
        "completion": answer.text,
        "exact_match": is_exact(answer, prompt.answer),
        "truncated": answer.truncated,
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="greedy answers", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for metric in METRICS:
        table.add_column(metric.replace("_", " "), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["name"], *(_cell(row, metric) for metric in METRICS))
    return table


def _cell(row: Mapping[str, Any], metric: str) -> str:
    if metric not in row["metrics"]:
        return ""
    value = f"{row['metrics'][metric]:.3f}"
    low, high = row["ci95"][metric]
    return f"{value} \\[{low:.3f},{high:.3f}]" if metric == METRICS[0] else value
