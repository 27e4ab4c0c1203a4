"""A whole GRPO step, rollout + reference + update, beside TRL's ``GRPOTrainer``.

Both train the same Qwen2 model on the same prompts: B=4 prompts of P=100 tokens, G=16 completions of C tokens, a
reference model (KL coefficient .04), AdamW, float32. rlkit completes by beams along a trie of 3,686 items, TRL by
sampling C tokens with ``generate``. The two alternate in one process on one thread; a step's time is measured from
the end of one optimizer step to the end of the next, the first steps of each turn left out; the figure is the median
of the turns' ratios.

    OMP_NUM_THREADS=1 python benchmarks/grpo_step.py [--turns N] [--out FILE]
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import argument_parser, conditions, speedup, write_rows
from datasets import Dataset
from transformers import PrinterCallback, Qwen2Config, Qwen2ForCausalLM, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer

from rlkit.algorithms.grpo import GRPO
from rlkit.config.algorithms import GRPOSettings
from rlkit.config.rewards import ItemMatchSettings
from rlkit.config.rollouts import BeamSettings
from rlkit.models.tokenizer import byte_tokenizer
from rlkit.policy.collect import Collector
from rlkit.policy.mini_batches import LoopSettings
from rlkit.policy.module import PolicyModel
from rlkit.policy.rewarder import Rewarder, WeightedReward
from rlkit.policy.rollouts import PromptStream
from rlkit.policy.sampler import BeamRollout
from rlkit.policy.trainer import PolicyTrainer
from rlkit.records import Prompt, Source
from rlkit.recsys.trie import Trie

B, G, P = 4, 16, 100
STEPS, SKIPPED = 8, 2
SIZES = {"0.8M": (128, 3), "4M": (256, 4)}  # hidden size, layers; feed-forward 4 x hidden
TARGET = 8.0


class Clock(TrainerCallback):
    """Notes when each optimizer step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Return the median step, the first ones left out."""
        gaps = np.diff(self.ends)[SKIPPED - 1 :]
        return float(np.median(gaps))


def build_tokenizer(levels: int) -> tuple[Any, list[str]]:
    tokenizer = byte_tokenizer()
    tokens = [f"<{'abcde'[level]}_{code}>" for level in range(levels) for code in range(256)]
    tokenizer.add_tokens(tokens)
    tokenizer.padding_side = "left"
    return tokenizer, tokens


def build_model(size: str, tokenizer: Any) -> Qwen2ForCausalLM:
    hidden, layers = SIZES[size]
    torch.manual_seed(0)
    heads = hidden // 64
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def prompts_of(tokens: list[str], count: int) -> list[str]:
    random = np.random.default_rng(0)
    return ["".join(tokens[index] for index in random.integers(0, len(tokens), P)) for _ in range(count)]


def arguments_of(folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder, "max_steps": STEPS, "learning_rate": 1e-5, "logging_steps": 1000, "report_to": [],
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "seed": 0, "bf16": False,
    }  # fmt: skip


def rlkit_step(size: str, levels: int) -> float:
    """Return the seconds of a step of rlkit's trainer."""
    tokenizer, tokens = build_tokenizer(levels)
    random = np.random.default_rng(1)
    rows = [
        [f"<{'abcde'[level]}_{code}>" for level, code in enumerate(random.integers(0, 256, levels))]
        for _ in range(3_686)
    ]
    trie = Trie.build([tokenizer.convert_tokens_to_ids(row) for row in rows], end_token=None)
    source = Source("benchmark")
    prompts = [Prompt(str(i), text, "".join(rows[i]), source) for i, text in enumerate(prompts_of(tokens, 256))]
    settings = GRPOSettings(rewards=(ItemMatchSettings(),), rollout=BeamSettings(), group_size=G, kl_coef=0.04)
    # Some candidates of every group are rewarded, as TRL's are below.
    reward = WeightedReward("even", 1.0, lambda rollouts: (rollouts.batch.completions[..., 0] % 2).float())
    collector = Collector(
        settings, rollout=BeamRollout(BeamSettings()), rewarder=Rewarder([reward]), tokenizer=tokenizer,
        valid=prompts[:1], seed=0, chunk=B,
        domain=SimpleNamespace(constraint=trie, normalization="children"), stream=PromptStream(prompts, 0),
        device="cpu",
    )  # fmt: skip
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        more = {"eval_strategy": "no", "per_device_train_batch_size": B, "remove_unused_columns": False}
        trainer = PolicyTrainer(
            PolicyModel(build_model(size, tokenizer), trie, "children", 1.0, "auto"),
            TrainingArguments(**arguments_of(folder), **more),
            algorithm=GRPO(settings), settings=settings, loop=LoopSettings(B, B, 1, STEPS), collector=collector,
            log_sample=lambda row: None, events=SimpleNamespace(on_rollouts=lambda **_: None),
            processing_class=tokenizer, callbacks=[clock],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds()


def trl_step(size: str, levels: int) -> float:
    """Return the seconds of a step of TRL's trainer."""
    tokenizer, tokens = build_tokenizer(levels)
    clock = Clock()

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(ids[0] % 2) for ids in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            **arguments_of(folder), per_device_train_batch_size=B * G, num_generations=G, max_completion_length=levels,
            beta=0.04, loss_type="grpo", temperature=1.0, gradient_checkpointing=False,
        )  # fmt: skip
        build_model(size, tokenizer).save_pretrained(f"{folder}/model")  # TRL loads its reference from a path
        trainer = GRPOTrainer(
            model=f"{folder}/model", reward_funcs=reward, args=config, processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": prompts_of(tokens, 256)}), callbacks=[clock],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds()


def measure(size: str, levels: int, turns: int) -> dict[str, Any]:
    pairs = [(trl_step(size, levels), rlkit_step(size, levels)) for _ in range(turns)]
    theirs, ours = (statistics.median(column) for column in zip(*pairs))
    name = f"GRPO step, {size} parameters, G={G}, P={P}, C={levels}: TRL {theirs:.3f} s / rlkit {ours:.3f} s"
    return speedup(name, TARGET, pairs) | conditions(("torch", "transformers", "trl"), torch.get_num_threads())


def main() -> None:
    parser = argument_parser(__file__, __doc__)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = []
    for size in SIZES:
        for levels in (3, 5):
            rows.append(measure(size, levels, arguments.turns))
            row = rows[-1]
            print(
                f"{row['name']}: {row['measured']:.1f}x "
                f"({row['spread'][0]:.1f} to {row['spread'][1]:.1f}; target >= {TARGET:g}x)",
                flush=True,
            )
    write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
