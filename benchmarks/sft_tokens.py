"""Tokens a second of SFT on conversations: rlkit's stage beside TRL's own trainer, as a script of TRL would build it.

    python benchmarks/sft_tokens.py

Both train the same preset on the same generated conversations, with the same batch, optimizer and completion-only loss,
in turn and in one process. TRL tokenizes ``prompt`` and ``completion`` itself; only optimizer steps are timed.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import argument_parser, conditions, speedup, write_rows
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from rlkit.algorithms.sft import sft
from rlkit.job import Job
from rlkit.plugins import load_plugins
from rlkit.recipe import recipe_from_tree
from rlkit.run_directory import RunDirectory

STEPS, SKIPPED, BATCH = 60, 10, 32
PACKAGES = ("torch", "transformers", "trl")


class Clock(TrainerCallback):
    """Notes when each optimizer step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Return the seconds of the steps that count, together: every row is of another length."""
        return float(np.sum(np.diff(self.ends)[SKIPPED:]))


def job_of(preset: str, folder: Path) -> Job:
    """Return an SFT stage on the generated conversations."""
    train = {"batch_size": BATCH, "max_steps": STEPS, "evaluate_every_steps": 1000, "save_every_steps": 1000}
    tree = {
        "name": "bench",
        "model": {"preset": preset},
        "domain": {"type": "chat"},
        "stages": {"sft": {"algorithm": {"type": "sft"}, "train": {**train, "report_to": [], "log_every_steps": 1000}}},
        "engine": {"threads": 1, "device": "cpu"},
    }
    run = RunDirectory(folder)
    run.open("", 0, {})
    return Job(recipe_from_tree(tree).recipe, load_plugins(), run, "sft")


def rlkit_seconds(preset: str) -> float:
    """Return the seconds of the counted steps of rlkit's stage."""
    with tempfile.TemporaryDirectory() as folder:
        return _timed(sft(job_of(preset, Path(folder))))


def trl_seconds(preset: str) -> float:
    """Return the seconds of the counted steps of TRL's trainer."""
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(preset, Path(folder))
        loaded = job.load_model()
        rows = job.domain.demonstrations("train")
        end = loaded.tokenizer.eos_token
        data = Dataset.from_dict(
            {"prompt": [row.prompt for row in rows], "completion": [row.completion + end for row in rows]}
        )
        config = SFTConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=1e-4, seed=0,
            lr_scheduler_type="cosine", warmup_steps=0.03, completion_only_loss=True, report_to=[], save_strategy="no",
            logging_steps=1000, use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, bf16=False,
            gradient_checkpointing=False, max_length=512, optim="adamw_torch",
        )  # fmt: skip
        return _timed(
            SFTTrainer(model=loaded.model, args=config, train_dataset=data, processing_class=loaded.tokenizer)
        )


def _timed(trainer: Any) -> float:
    clock = Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds()


def main() -> None:
    """Measure both presets."""
    parser = argument_parser(__file__, __doc__)
    parser.add_argument("--pairs", type=int, default=7, help="how often both are measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    rows = []
    for preset in ("nano", "micro"):
        pairs = [(trl_seconds(preset), rlkit_seconds(preset)) for _ in range(options.pairs)]
        name = f"SFT tokens a second, {preset} preset, batches of {BATCH} conversations: rlkit over TRL"
        rows.append({**speedup(name, 0.97, pairs), **conditions(PACKAGES, 1)})
        print(rows[-1]["name"], round(rows[-1]["measured"], 3), [round(value, 3) for value in rows[-1]["spread"]])
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()
