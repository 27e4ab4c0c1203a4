"""``train.extra``: names are checked against the fields of transformers' arguments, read from source without an import.

Importing ``transformers`` takes seconds; its ``training_args.py`` parsed by ``ast`` takes milliseconds.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from rlkit.errors import did_you_mean

BASE = "transformers.training_args:TrainingArguments"

# What a recipe says elsewhere, so that nothing has two sources: argument -> where it is said.
OWNED = {
    "learning_rate": "train.learning_rate",
    "optim": "train.optimizer",
    "weight_decay": "train.weight_decay",
    "adam_beta1": "train.adam_beta1",
    "adam_beta2": "train.adam_beta2",
    "lr_scheduler_type": "train.schedule",
    "lr_scheduler_kwargs": "train.schedule_options",
    "warmup_steps": "train.warmup",
    "warmup_ratio": "train.warmup",
    "max_grad_norm": "train.max_grad_norm",
    "per_device_train_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size and train.micro_batch_size",
    "num_train_epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "eval_strategy": "train.evaluate_every_steps",
    "eval_steps": "train.evaluate_every_steps",
    "save_strategy": "train.save_every_steps",
    "save_steps": "train.save_every_steps",
    "save_total_limit": "train.keep_checkpoints",
    "logging_strategy": "train.log_every_steps",
    "logging_steps": "train.log_every_steps",
    "report_to": "train.report_to",
    "seed": "the recipe's seed",
    "data_seed": "the recipe's seed",
    "output_dir": "--out",
    "resume_from_checkpoint": "--out, since the same command continues a run",
    "use_cpu": "engine.device",
    "deepspeed": "engine",
    "remove_unused_columns": "rlkit itself, which needs every column",
    "max_length": "algorithm.max_tokens",
    "packing": "algorithm.packing",
}


def extra_problem(name: str, sources: Sequence[str], said: Mapping[str, str] | None = None) -> str | None:
    """Return what is wrong with the name of a further training argument, if anything.

    Args:
        name: the key under ``train.extra``.
        sources: classes that have more fields than ``TrainingArguments``, as ``module:class``.
        said: further arguments, and which of the algorithm's settings say them.
    """
    if said and name in said:
        return f"set by algorithm.{said[name]}; leave it out here"
    if name in OWNED:
        return f"set by {OWNED[name]}; leave it out here"
    known = {field for source in (BASE, *sources) for field in declared_fields(source)}
    if not known or name in known:
        return None
    return f"no such training argument{_near(name, known - OWNED.keys())}"


def _near(name: str, known: set[str]) -> str:
    """Return the suggestion without the list of all the arguments, which is long."""
    suggestion, listed, _ = did_you_mean(name, known).partition(" (known: ")
    return suggestion if listed else f"; the {len(known)} arguments are in transformers' documentation"


@cache
def declared_fields(source: str) -> frozenset[str]:
    """Return the annotated fields in the body of a class, read from its file; empty where the package is not there.

    Args:
        source: ``package.module:Class``.
    """
    module, _, name = source.partition(":")
    package, *rest = module.split(".")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    path = Path(spec.submodule_search_locations[0]).joinpath(*rest).with_suffix(".py")
    if not path.is_file():
        return frozenset()
    classes = [node for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.ClassDef)]
    lines = [line for node in classes if node.name == name for line in node.body if isinstance(line, ast.AnnAssign)]
    return frozenset(line.target.id for line in lines if isinstance(line.target, ast.Name))
