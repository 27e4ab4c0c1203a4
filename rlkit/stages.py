"""The built-in stages that belong to no domain: training, and handing evaluation to the domain."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PrinterCallback, set_seed

from rlkit.callbacks import last_checkpoint
from rlkit.job import Job
from rlkit.models.load import merged
from rlkit.models.tokenizer import fingerprint
from rlkit.models.wrapped import WrappedTrainer
from rlkit.report.tables import evaluation_tables, show
from rlkit.run_directory import content_hash


def train(job: Job) -> dict[str, Any]:
    """Train with the stage's algorithm, from its last checkpoint if there is one, and save the model.

    Returns:
        The stage's artefacts, on rank 0; elsewhere an empty mapping.
    """
    set_seed(job.seed)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(job.run.path / "logs" / "tensorboard" / job.stage)
    settings: Any = job.settings.algorithm
    trainer = job.registry.get("algorithm", settings.type).load()(job)
    trainer.remove_callback(PrinterCallback)  # our own progress shows the same numbers
    checkpoint = last_checkpoint(job.checkpoints) if job.rank == 0 or job.processes == 1 else None
    checkpoint = _agree(checkpoint, job)
    step = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
    if job.rank == 0:
        job.run.keep_lines(job.stage, before_step=step + 1 if checkpoint else 0)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    job.engine.check_wrapped(trainer)
    return _save(trainer, job)


def _agree(checkpoint: Path | None, job: Job) -> Path | None:
    """Let every rank go on from the checkpoint that rank 0 chose."""
    if job.processes == 1:
        return checkpoint
    names = [str(checkpoint) if checkpoint else ""]
    dist.broadcast_object_list(names, src=0)
    return Path(names[0]) if names[0] else None


def _save(trainer: Any, job: Job) -> dict[str, Any]:
    """Write the model whole or not at all: Hugging Face layout, tokenizer, and what the domain needs."""
    wrapped = isinstance(trainer, WrappedTrainer)
    lm = trainer.model.lm if wrapped else trainer.model
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # a collective call under ZeRO-3
    final, partial = job.folder / "model", job.folder / "model.partial"
    with _gathered(trainer, lm):
        if job.rank != 0:
            return {}
        shutil.rmtree(partial, ignore_errors=True)
        _save_lm(lm, partial, {name[3:]: state[name] for name in state if name[:3] == "lm."} if wrapped else state)
    tokenizer = trainer.processing_class
    tokenizer.save_pretrained(partial)
    job.domain.save(partial)
    if wrapped:
        trainer.model.save_beside(partial, state)
    beside = trainer.save_beside(partial) if hasattr(trainer, "save_beside") else {}
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    weights = sorted(final.glob("*.safetensors"))
    facts = {"hash": content_hash(*weights), "tokenizer": fingerprint(tokenizer), **job.domain.fingerprint()}
    return {job.settings.makes[0]: facts | beside}


def _save_lm(lm: Any, folder: Path, state: dict[str, Any]) -> None:
    if hasattr(lm, "merge_and_unload"):
        merged(lm).save_pretrained(folder)
    else:
        lm.save_pretrained(folder, state_dict=state)


@contextmanager
def _gathered(trainer: Any, lm: Any) -> Iterator[None]:
    """Hold the weights of a model with an adapter whole on every rank: merging works on them in place."""
    engine = trainer.model_wrapped
    if hasattr(lm, "merge_and_unload") and trainer.is_deepspeed_enabled and engine.zero_optimization_stage() == 3:
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(lm.parameters())):
            yield
    else:
        yield


def evaluate(job: Job) -> dict[str, Any]:
    """Let the domain evaluate the trained models, and show the table."""
    set_seed(job.seed)
    job.run.keep_lines(job.stage, before_step=0)
    report = job.domain.evaluate(job)
    for table in evaluation_tables(report):
        show(table)
    invalid = f", {report['invalid']} invalid" if "invalid" in report else ""
    print(f"{report['n']} rows{invalid}; details in {job.folder}")
    return {"evaluation": {"metrics": report["metrics"]}}
