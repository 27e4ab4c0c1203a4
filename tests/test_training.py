"""Batch arithmetic, and how train settings reach transformers: every one of them, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from rlkit.config.train import TrainSettings
from rlkit.errors import RecipeError
from rlkit.training import BatchPlan, batch_plan, training_arguments


def arguments(steps: int = 100, processes: int = 1, engine: dict | None = None, **settings: Any) -> dict[str, Any]:
    return training_arguments(
        TrainSettings(**settings),
        Path("out"),
        steps=steps,
        processes=processes,
        engine={"use_cpu": True} if engine is None else engine,
        seed=3,
    )


# ---- batches


@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "processes", "micro", "accumulation"),
    [
        (64, None, 1, 64, 1),
        (64, None, 4, 16, 1),  # a rank's share is 64 / 4
        (64, 8, 1, 8, 8),
        (64, 8, 2, 8, 4),  # 2 ranks x 4 micro-batches x 8
        (2, None, 2, 1, 1),
        (64, 64, 1, 64, 1),
    ],
)
def test_ranks_times_micro_batches_times_their_size_is_the_batch(
    batch_size: int, micro_batch_size: int | None, processes: int, micro: int, accumulation: int
) -> None:
    plan = batch_plan(TrainSettings(batch_size=batch_size, micro_batch_size=micro_batch_size), processes)
    assert plan == BatchPlan(batch_size, micro, accumulation)
    assert processes * plan.micro_batch_size * plan.accumulation == batch_size


@pytest.mark.parametrize(
    ("batch_size", "micro_batch_size", "processes"),
    [(10, None, 4), (1, None, 2), (8, 8, 2), (24, 8, 2)],  # 24 / 2 = 12 is no multiple of 8
)
def test_a_batch_that_does_not_divide_is_refused_with_its_numbers(
    batch_size: int, micro_batch_size: int | None, processes: int
) -> None:
    message = rf"^train.batch_size: {batch_size} does not divide into {processes} processes .*; choose a multiple$"
    with pytest.raises(RecipeError, match=message):
        batch_plan(TrainSettings(batch_size=batch_size, micro_batch_size=micro_batch_size), processes)


# ---- arguments

CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "learning_rate": (3e-3, {"learning_rate": 3e-3}),
    "optimizer": ("adafactor", {"optim": "adafactor"}),
    "weight_decay": (0.1, {"weight_decay": 0.1}),
    "adam_beta1": (0.8, {"adam_beta1": 0.8}),
    "adam_beta2": (0.95, {"adam_beta2": 0.95}),
    "schedule": ("linear", {"lr_scheduler_type": "linear"}),
    "schedule_options": ({"num_cycles": 2}, {"lr_scheduler_kwargs": {"num_cycles": 2}}),
    "warmup": (5, {"warmup_steps": 5}),
    "max_grad_norm": (0.0, {"max_grad_norm": 0.0}),
    "batch_size": (32, {"per_device_train_batch_size": 32}),
    "micro_batch_size": (4, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 16}),
    "epochs": (2.5, {"num_train_epochs": 2.5}),
    "max_steps": (7, {"max_steps": 7}),
    "precision": ("fp16", {"fp16": True, "bf16": False}),
    "gradient_checkpointing": (True, {"activation_checkpointing": True}),
    "evaluate_every_steps": (6, {"eval_steps": 6, "save_steps": 6}),
    "save_every_steps": (3, {"eval_steps": 10, "save_steps": 3}),
    "keep_checkpoints": (1, {"save_total_limit": 1}),
    "log_every_steps": (2, {"logging_steps": 2}),
    "report_to": ((), {"report_to": []}),
    "extra": ({"adam_epsilon": 1e-6}, {"adam_epsilon": 1e-6}),
}
"""For every setting another value than its default, and what becomes of it."""
ELSEWHERE = {"early_stopping_patience"}
"""Settings that become callbacks."""


def test_every_train_setting_is_accounted_for() -> None:
    assert CHANGES.keys() | ELSEWHERE == TrainSettings.model_fields.keys()


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_changes_its_argument_and_no_other(name: str) -> None:
    value, expected = CHANGES[name]
    before, after = arguments(), arguments(**{name: value})
    assert {key: after[key] for key in expected} == expected
    changed = {key for key in after if key not in before or after[key] != before[key]}
    assert changed, "the value tried here is the default"
    allowed = {"per_device_eval_batch_size"} if name in ("batch_size", "micro_batch_size") else set()
    assert changed <= expected.keys() | allowed


def test_transformers_takes_all_of_them(tmp_path: Path) -> None:
    settings = {name: value for name, (value, _) in CHANGES.items() if name not in ("precision", "save_every_steps")}
    made = TrainingArguments(**arguments(**settings | {"batch_size": 64}) | {"output_dir": str(tmp_path)})
    assert (made.learning_rate, made.optim, made.max_steps, made.adam_epsilon) == (3e-3, "adafactor", 7, 1e-6)
    assert (made.seed, made.data_seed, made.device.type) == (3, 3, "cpu")


def test_a_run_is_looked_at_ten_times_and_saved_as_often() -> None:
    assert [arguments(steps)["eval_steps"] for steps in (1, 10, 95, 100)] == [1, 1, 10, 10]
    assert arguments(95)["save_steps"] == 10


def test_what_the_engine_adds_is_kept_and_extra_wins_over_everything() -> None:
    engine = {"use_cpu": True, "ddp_backend": "gloo"}
    assert arguments(engine=engine).items() >= engine.items()
    assert (
        arguments(engine=engine, extra={"ddp_backend": "mpi", "disable_tqdm": False}).items()
        >= {
            "ddp_backend": "mpi",
            "use_cpu": True,
            "disable_tqdm": False,
        }.items()
    )


def test_the_cpu_computes_in_full_precision_unless_told_otherwise() -> None:
    assert not arguments()["bf16"]
    assert arguments(precision="bf16")["bf16"]
    assert not any(arguments(precision="fp32")[name] for name in ("bf16", "fp16"))
