"""Small real objects that several tests share."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest

from rlkit.config.models import CausalLMSettings
from rlkit.job import Job
from rlkit.models.load import LoadedModel, load_causal_lm
from rlkit.plugins import load_plugins
from rlkit.recipe import recipe_from_tree
from rlkit.run_directory import RunDirectory

ROOT = Path(__file__).parent.parent


def data_folder(name: str) -> Path:
    """Return a folder of real data, found through RLKIT_DATA; skip the test where it is absent."""
    base = Path(os.environ.get("RLKIT_DATA", ROOT.parent / "shared" / "data"))
    if not (base / name).is_dir():
        pytest.skip(f"no data in {base / name}; set RLKIT_DATA")
    return base / name


def tiny_model(new_tokens: tuple[str, ...] = (), seed: int = 0) -> LoadedModel:
    """Return a model of two narrow layers."""
    settings = CausalLMSettings(hidden_size=32, intermediate_size=64, layers=2)
    return load_causal_lm(settings, new_tokens=new_tokens, seed=seed)


def tiny_recipe(**changes: object) -> dict:
    """Return the tree of a recipe that runs in seconds: a small demo shop, two layers, a few steps."""
    train = {"batch_size": 16, "max_steps": 6, "report_to": [], "log_every_steps": 2}
    tree: dict = {
        "name": "tiny",
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 2},
        "domain": {"type": "recommendation", "data": {"type": "demo", "users": 300, "items": 60}},
        "stages": {
            "semantic_ids": {"type": "semantic_ids"},
            "sft": {
                "algorithm": {"type": "sft"},
                "train": {**train, "learning_rate": 3e-3, "evaluate_every_steps": 3},
            },
            "grpo": {
                "algorithm": {
                    "type": "grpo",
                    "group_size": 4,
                    "rewards": [{"type": "item_match"}, {"type": "prefix_match"}],
                    "validate_on": {"prompts": 16, "num_beams": 10, "every_steps": 2},
                },
                "train": {**train, "learning_rate": 1e-3, "batch_size": 8},
            },
            "evaluate": {"type": "evaluate", "num_beams": 10, "max_rows": 64, "k": [1, 5, 10]},
        },
        "engine": {"threads": 1},
    }
    return tree | changes


def tiny_job(folder: Path, stage: str = "grpo", tree: dict | None = None) -> Job:
    """Return the job of one stage of a tiny recipe that holds no other training stage."""
    tree = copy.deepcopy(tree or tiny_recipe())
    tree["stages"] = {stage: tree["stages"][stage]}
    loaded = recipe_from_tree(tree)
    directory = RunDirectory(folder)
    directory.open("", 0, {})
    job = Job(loaded.recipe, load_plugins(), directory, stage)
    job.engine.prepare()
    return job


def language_model_folder(folder: Path, tied: bool = True) -> Path:
    """Write a Hugging Face folder: random Qwen2 weights and a real BPE tokenizer, trained here on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    text = [
        "A customer bought these items, oldest first.",
        "Write the code of the item that comes next.",
        "### History:",
    ]
    bpe.train_from_iterator(text * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    set_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
