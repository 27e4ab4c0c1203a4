"""A whole PPO step, rollout + reward + reference + values + updates, beside ``PPOTrainer`` of trl 1.12, the last one.

Both train the same Qwen2 model with a separate value model, score with the same reward model and keep a reference: 16
completions of C=32 tokens to prompts of P=100 tokens per step, one per prompt or groups of G, four epochs of one
mini-batch in micro-batches of 8, AdamW, float32. The end token is one that the models cannot say, so all completions
have C tokens on both sides. TRL has no shared backbone; rlkit's is a row of its own, beside the same TRL.

Where the time goes is the model's shape. With one completion per prompt both do the same work but for the output head,
which rlkit runs on completions only: next to nothing with 1,286 tokens, most of the work with 50,304 (pythia-14m's
width, layers and vocabulary). With groups the prompt is computed once.

trl 1.12 cannot be imported beside the installed trl, so it runs in a process of its own, out of the folder that
``RLKIT_TRL_WITH_PPO`` names (``pip download --no-deps trl==1.12.0``, unpacked). The two take turns, one thread each; a
step's time is measured from its end to the end of the next, the first ones of each turn left out; the figure is the
median of the turns' ratios.

    OMP_NUM_THREADS=1 RLKIT_TRL_WITH_PPO=FOLDER python benchmarks/ppo_step.py [--turns N] [--out FILE]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from common import argument_parser, conditions, speedup, write_rows
from transformers import (
    PrinterCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from rlkit.models.tokenizer import byte_tokenizer

PEER = "RLKIT_TRL_WITH_PPO"
COMPLETIONS, P, C, MICRO, EPOCHS = 16, 100, 32, 8, 4
STEPS, SKIPPED = 3, 1
SHAPES = {"0.8M": (128, 3, 1_286), "pythia-14m": (128, 6, 50_304)}  # hidden size, layers, vocabulary
ROWS = (("separate", 1, 1.5), ("separate", 4, 1.5), ("shared", 1, None))  # value, G, target
KL_COEF, LEARNING_RATE = 0.05, 1e-5


class Clock(TrainerCallback):
    """Notes when each step ends; with several updates per step, every so many count."""

    def __init__(self, updates: int) -> None:
        self.updates, self.ends = updates, [0.0]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Return the median step, the first ones left out."""
        return float(np.median(np.diff(self.ends[:: self.updates])[SKIPPED:]))


@cache
def build_tokenizer(vocabulary: int) -> tuple[Any, list[str]]:
    """Return a tokenizer whose end token is the first id that the models do not have, and tokens for prompts."""
    tokenizer = byte_tokenizer()
    tokens = [f"<t_{index}>" for index in range(vocabulary - len(tokenizer))]
    tokenizer.add_tokens(tokens)
    tokenizer.add_special_tokens({"eos_token": "<never>", "pad_token": "<never>"})
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == vocabulary
    tokenizer.padding_side = "left"
    return tokenizer, tokens[:1_024]


def build_model(kind: Any, shape: str) -> Any:
    hidden, layers, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    heads = hidden // 64
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=True, num_labels=1,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return kind(config)


def prompts_of(tokens: list[str], count: int) -> list[str]:
    random = np.random.default_rng(0)
    return ["".join(tokens[index] for index in random.integers(0, len(tokens), P)) for _ in range(count)]


def arguments_of(folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder, "learning_rate": LEARNING_RATE, "logging_steps": 1000, "report_to": [], "seed": 0,
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "bf16": False, "gradient_checkpointing": False,
        "per_device_train_batch_size": MICRO,
    }  # fmt: skip


# ---- rlkit


def rlkit_step(shape: str, group_size: int, backbone: str) -> float:
    """Return the seconds of a step of rlkit's trainer."""
    from rlkit.algorithms.ppo import PPO
    from rlkit.config.ppo import PPOSettings
    from rlkit.config.rewards import ItemMatchSettings
    from rlkit.config.rollouts import SampleSettings
    from rlkit.policy.collect import Collector
    from rlkit.policy.mini_batches import LoopSettings
    from rlkit.policy.module import PolicyModel
    from rlkit.policy.rewarder import Rewarder, WeightedReward
    from rlkit.policy.rollouts import PromptStream
    from rlkit.policy.sampler import SampleRollout
    from rlkit.policy.trainer import PolicyTrainer
    from rlkit.policy.value import ValueHead, ValueModel
    from rlkit.records import Prompt, Source

    tokenizer, tokens = build_tokenizer(SHAPES[shape][2])
    prompts = [Prompt(str(i), text, "", Source("benchmark")) for i, text in enumerate(prompts_of(tokens, 256))]
    rollout = SampleSettings(max_completion_tokens=C)
    settings = PPOSettings(
        rewards=(ItemMatchSettings(),), rollout=rollout, group_size=group_size, updates_epochs=EPOCHS, kl_coef=KL_COEF
    )
    scorer = build_model(Qwen2ForSequenceClassification, shape).eval()
    groups, chunk = COMPLETIONS // group_size, MICRO // group_size
    domain = SimpleNamespace(constraint=None, normalization="vocabulary")
    collector = Collector(
        settings, rollout=SampleRollout(rollout),
        rewarder=Rewarder([WeightedReward("learned", 1.0, lambda rollouts: scores(scorer, rollouts))]),
        tokenizer=tokenizer, valid=prompts[:1], seed=0, chunk=chunk, domain=domain, stream=PromptStream(prompts, 0),
        device="cpu",
    )  # fmt: skip
    value: Any = ValueHead(SHAPES[shape][0])
    if backbone == "separate":
        value = ValueModel(build_model(Qwen2ForSequenceClassification, shape))
    clock = Clock(EPOCHS)
    with tempfile.TemporaryDirectory() as folder:
        more = {"per_device_train_batch_size": chunk, "gradient_accumulation_steps": COMPLETIONS // MICRO}
        trainer = PolicyTrainer(
            PolicyModel(build_model(Qwen2ForCausalLM, shape), None, "vocabulary", 1.0, "auto", value, False),
            TrainingArguments(
                **arguments_of(folder) | more, max_steps=STEPS * EPOCHS, eval_strategy="no", remove_unused_columns=False
            ),
            algorithm=PPO(settings), settings=settings, loop=LoopSettings(groups, groups, EPOCHS, STEPS),
            collector=collector, log_sample=lambda row: None, events=SimpleNamespace(on_rollouts=lambda **_: None),
            processing_class=tokenizer, callbacks=[clock],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds()


@torch.no_grad()
def scores(scorer: Any, rollouts: Any) -> torch.Tensor:
    """Return (B, G) what a reward model says of prompts and completions without padding."""
    batch = rollouts.batch
    assert bool(batch.mask.all()), "a completion ended early: the two sides would not have the same tokens"
    prompts = batch.prompts[:, None].expand(-1, batch.mask.shape[1], -1)  # (B, G, P)
    ids = torch.cat([prompts, batch.completions], -1).flatten(0, 1)
    last = scorer.model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
    return scorer.score(last)[:, 0].view(batch.mask.shape[:2])


# ---- trl 1.12, in a process of its own


def trl_step(shape: str, group_size: int) -> float:
    """Return the seconds of a step of TRL's trainer."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer, tokens = build_tokenizer(SHAPES[shape][2])
    texts = [text for text in prompts_of(tokens, 256) for _ in range(group_size)]
    value, reward = (build_model(Qwen2ForSequenceClassification, shape) for _ in range(2))
    clock = Clock(1)
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            **arguments_of(folder), gradient_accumulation_steps=COMPLETIONS // MICRO, num_mini_batches=1,
            num_ppo_epochs=EPOCHS, total_episodes=STEPS * COMPLETIONS, response_length=C, temperature=1.0,
            kl_coef=KL_COEF, num_sample_generations=0,
        )  # fmt: skip
        trainer = PPOTrainer(
            args=config, processing_class=tokenizer, model=build_model(Qwen2ForCausalLM, shape),
            ref_model=build_model(Qwen2ForCausalLM, shape), reward_model=reward, value_model=value,
            train_dataset=Dataset.from_dict({"input_ids": tokenizer(texts)["input_ids"]}), callbacks=[clock],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds()


def serve() -> None:
    """Answer requests: a line of JSON in, a line of JSON out; what TRL prints goes to the error stream."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import trl

    print(json.dumps(trl.__version__), file=answers)
    for line in sys.stdin:
        print(json.dumps(trl_step(**json.loads(line))), file=answers)


class Peer:
    """The process that has trl 1.12.

    Args:
        folder: where trl 1.12 is unpacked.
    """

    def __init__(self, folder: str) -> None:
        variables = {**os.environ, "PYTHONPATH": folder, "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1"}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, __file__, "--serve"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, text=True, env=variables, bufsize=1, **pipes)
        self.version = self._answer()

    def seconds(self, **request: Any) -> float:
        """Return the seconds of a step."""
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"trl's process ended:\n{self.errors.read()[-3000:]}")
        return json.loads(line)


def measure(peer: Peer, shape: str, turns: int, row: tuple[str, int, float | None]) -> dict[str, Any]:
    backbone, group_size, target = row
    pairs = [
        (peer.seconds(shape=shape, group_size=group_size), rlkit_step(shape, group_size, backbone))
        for _ in range(turns)
    ]
    theirs, ours = (statistics.median(column) for column in zip(*pairs))
    name = (
        f"PPO step, {shape}, {backbone} value, {COMPLETIONS} completions, G={group_size}, P={P}, C={C}: "
        f"TRL {theirs:.3f} s / rlkit {ours:.3f} s"
    )
    where = conditions(("torch", "transformers"), torch.get_num_threads())
    where["versions"]["trl"] = peer.version
    return speedup(name, target, pairs) | where


def main() -> None:
    parser = argument_parser(__file__, __doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help="be the process that has trl 1.12")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    if arguments.serve:
        serve()
        return
    folder = os.environ.get(PEER, "")
    if not (Path(folder) / "trl" / "experimental" / "ppo").is_dir():
        print(f"skipped: {PEER} names no folder with trl 1.12, got {folder!r}; unpack it and set the variable")
        return
    peer = Peer(folder)
    rows = []
    for shape in SHAPES:
        for row in ROWS:
            rows.append(measure(peer, shape, arguments.turns, row))
            figure = rows[-1]
            low, high = figure["spread"]
            print(f"{figure['name']}: {figure['measured']:.2f}x ({low:.2f} to {high:.2f})", flush=True)
    write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
