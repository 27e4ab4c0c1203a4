"""How fast a reward model scores: rows in batches of like lengths, against one row after the other.

Both sides go from text to scores through the same reward (tokenizing included); only one of them gets all rows at once.
They alternate in one process on one thread; the figure is the median of the pairs' ratios of CPU time (which other load
on the machine does not stretch). On a CPU a batch saves the cost of calls, not arithmetic, so the gain falls with the
length of the rows and the size of the model; these are a preset's on rows of a few words, sentences, and paragraphs.

    OMP_NUM_THREADS=1 python benchmarks/reward_scoring.py [--pairs N] [--rows N] [--out FILE]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import argument_parser, conditions, speedup, write_rows

from rlkit.config.models import CausalLMSettings
from rlkit.config.reward_models import LearnedRewardSettings
from rlkit.models.load import load_causal_lm
from rlkit.models.scalar_head import new_scalar_head
from rlkit.policy.text_rewards import Sample
from rlkit.reward_models.scorer import LearnedReward, learned_reward

TARGET = 3.0
WORKLOADS: dict[str, tuple[str, int, int, float | None]] = {
    "prompt and answer of a few words": ("nano", 5, 30, TARGET),
    "prompt and answer of a sentence": ("nano", 20, 120, None),
    "prompt and answer of a few words, 4M parameters": ("micro", 5, 30, None),
}
"""Preset, and between which lengths the bytes of prompt and of completion lie."""
TOLERANCE = 1e-4


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    rows = [measure(name, arguments.pairs, arguments.rows) for name in WORKLOADS]
    for row in rows:
        low, high = row["spread"]
        print(f"{row['name']}: {row['measured']:.3g} ({low:.3g} to {high:.3g})")
    write_rows(arguments.out, rows)


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__file__, __doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--rows", type=int, default=256)
    return parser.parse_args()


def measure(name: str, pairs: int, count: int) -> dict[str, Any]:
    preset, shortest, longest, target = WORKLOADS[name]
    reward, samples = build_reward(preset), build_samples(count, shortest, longest)
    together, alone = reward.score(samples), one_by_one(reward, samples)
    assert np.allclose(together, alone, atol=TOLERANCE), "batches change the scores"
    times = []
    for _ in range(pairs):
        seconds = []
        for score in (one_by_one, at_once):
            start = time.process_time()
            score(reward, samples)
            seconds.append(time.process_time() - start)
        times.append((seconds[0], seconds[1]))
    title = f"reward scoring, {count} rows of {name}, {preset}"
    return speedup(title, target, times) | conditions(("torch", "transformers"), torch.get_num_threads())


def one_by_one(reward: LearnedReward, samples: Sequence[Sample]) -> list[float]:
    return [reward.score([sample])[0] for sample in samples]


def at_once(reward: LearnedReward, samples: Sequence[Sample]) -> Sequence[float]:
    return reward.score(samples)


def build_reward(preset: Any) -> LearnedReward:
    """Return a reward model with an untrained head."""
    made = new_scalar_head(load_causal_lm(CausalLMSettings(preset=preset)))
    with tempfile.TemporaryDirectory() as folder:
        made.model.save_pretrained(folder)
        made.tokenizer.save_pretrained(folder)
        return learned_reward(LearnedRewardSettings(path=str(Path(folder))), None)


def build_samples(count: int, shortest: int, longest: int) -> list[Sample]:
    """Return random lowercase text, a byte a token."""
    rng = np.random.default_rng(0)

    def text() -> str:
        return "".join(chr(code) for code in rng.integers(97, 123, rng.integers(shortest, longest + 1)))

    return [Sample(text(), text()) for _ in range(count)]


if __name__ == "__main__":
    main()
