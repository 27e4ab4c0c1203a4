"""The recommendation domain's stages: making semantic IDs, and evaluation beside honest baselines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlkit.config.stages import EvaluateStageSettings
from rlkit.errors import RecipeError
from rlkit.job import Job
from rlkit.progress import StageProgress
from rlkit.recsys.evaluation import EvaluationRows, evaluate_baselines, evaluate_ranked
from rlkit.recsys.evaluation_files import eval_report, write_ranked, write_report
from rlkit.recsys.recommend import Ranking, rank

if TYPE_CHECKING:
    from rlkit.recsys.domain import RecommendationDomain

SEMANTIC_IDS_FILE = "semantic_ids.json"


def semantic_ids(job: Job) -> dict[str, Any]:
    """Make, or read, the semantic IDs of the catalog."""
    domain: RecommendationDomain = job.domain
    domain.prepare()
    job.folder.mkdir(parents=True, exist_ok=True)
    domain.ids.save(job.folder / SEMANTIC_IDS_FILE)
    return {
        "semantic_ids": {"hash": domain.ids.fingerprint(), "method": domain.ids.method, "items": len(domain.ids.tokens)}
    }


def evaluate(job: Job, domain: RecommendationDomain) -> dict[str, Any]:
    """Rank the split's rows with each model, write ``eval.json`` and ``ranked.jsonl``, and return the report."""
    settings: EvaluateStageSettings = job.settings
    names = list(settings.models) or job.trained_stages()
    if not names:
        raise RecipeError(f"stages.{job.stage}: the recipe trains no model; add a train stage before it")
    interactions = domain.data.splits[settings.split][: settings.max_rows]
    rankings = {name: _rank(job, domain, name, len(interactions)) for name in names}
    ks = tuple(k for k in settings.k if k <= settings.num_beams)
    rows = EvaluationRows(interactions, np.asarray(domain.ids.sid_of_item), domain.data.splits["train"], ks, job.seed)
    models = [evaluate_ranked(rows, name, ranking.sids, invalid=ranking.invalid) for name, ranking in rankings.items()]
    splits = domain.data.splits
    others = (
        evaluate_baselines(rows, splits["train"], splits["valid"], domain.data.true_scores)
        if settings.baselines
        else []
    )
    report = eval_report(rows, models, others)
    job.folder.mkdir(parents=True, exist_ok=True)
    keys = [item.key for item in domain.data.items], domain.sid_texts
    for name, ranking in rankings.items():
        write_ranked(job.folder / _ranked_name(name, names), rows, keys, ranking.sids, ranking.scores)
    write_report(job.folder / "eval.json", report)
    return report


def _ranked_name(name: str, names: Sequence[str]) -> str:
    """Return the file of a model's ranked lists; the result's, the last one's, is ``ranked.jsonl``."""
    return "ranked.jsonl" if name == names[-1] else f"ranked-{name}.jsonl"


def _rank(job: Job, domain: RecommendationDomain, name: str, count: int) -> Ranking:
    settings: EvaluateStageSettings = job.settings
    loaded = job.load_model(job.model_of(name))
    device = torch.device(job.engine.device)
    prompts = domain.prompts(settings.split)[:count]
    progress = StageProgress(f"{job.stage} {name}", len(prompts), unit="user")
    started = time.monotonic()
    ranking = rank(
        loaded.model.to(device).eval(),
        loaded.tokenizer,
        domain,
        prompts,
        num_beams=settings.num_beams,
        batch_size=settings.batch_size,
        device=device,
        exclude_history=settings.exclude_history,
        progress=lambda done: progress.show(done, {}),
    )
    progress.close()
    seconds = time.monotonic() - started
    row = {"stage": job.stage, "step": 0, "model": name, "users_per_second": round(len(prompts) / seconds, 1)}
    job.run.append("metrics.jsonl", row)
    return ranking
