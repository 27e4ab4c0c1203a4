"""How large a catalog may be: building the trie of a million items, its size, and its cost at every decoding step.

The constraint's part of a step is finding the continuations of all beams. The whole step is everything that decoding
does beside the model: continuations, their logits, normalization over them, and the choice of the next beams. Both at
B=16 prompts and K=50 beams, averaged over the levels of one search. The million items and 3,686 items alternate in one
process on one thread; the figure is the median of the pairs' ratios of CPU time (which other load on the machine does
not stretch).

    OMP_NUM_THREADS=1 python benchmarks/trie.py [--pairs N] [--out FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import argument_parser, conditions, figures, write_rows
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlkit.policy.beam_rows import Readout
from rlkit.policy.beam_tree import _Frontier, _Search, _step
from rlkit.recsys.trie import Trie

NUM_PROMPTS, NUM_BEAMS = 16, 50
SMALL = (3_686, (48, 256, 256))  # items, codes per level: as in Industrial_and_Scientific
LARGE = {"64 codes a level": (1_000_000, (64,) * 4), "256 codes a level": (1_000_000, (256,) * 4)}
REPEATS = 20
MOST_SECONDS, MOST_BYTES, MOST_RATIO = 5.0, 64e6, 1.5


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    small = Trie.build(build_items(*SMALL), end_token=None)
    rows = [row for name in LARGE for row in measure(name, small, arguments.pairs)]
    for row in rows:
        low, high = row["spread"]
        goal = "" if row["target"] is None else f"; target <= {row['target']:.3g}"
        print(f"{row['name']}: {row['measured']:.3g} ({low:.3g} to {high:.3g}{goal})")
    write_rows(arguments.out, rows)


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__file__, __doc__)
    parser.add_argument("--pairs", type=int, default=25)
    return parser.parse_args()


def measure(name: str, small: Trie, pairs: int) -> list[dict[str, Any]]:
    """Return a row each for the time to build, the size, and the cost of a step."""
    items, codes = LARGE[name]
    rows = build_items(items, codes)
    build_seconds = []
    for _ in range(3):
        start = time.process_time()
        trie = Trie.build(rows, end_token=None)
        build_seconds.append(time.process_time() - start)
    title = f"{items:,} items x {len(codes)} levels, {name}"
    runs = [Run(trie), Run(small)]
    times = seconds_of([run.seconds_per_step for run in runs], pairs)
    look_ups = seconds_of([run.seconds_per_look_up for run in runs], pairs)
    ratios, of_look_ups = ([large / little for large, little in zip(*pair)] for pair in (times, look_ups))
    small_title = f"that at {SMALL[0]:,} items (B={NUM_PROMPTS}, K={NUM_BEAMS})"
    return [
        result(f"trie: seconds to build {title}", MOST_SECONDS, build_seconds),
        result(f"trie: bytes of {title}", MOST_BYTES, [trie.num_bytes]),
        result(f"trie: the constraint's part of a step at {title}, over {small_title}", MOST_RATIO, of_look_ups)
        | {"seconds": [statistics.median(column) for column in look_ups]},
        result(f"trie: a whole decoding step at {title}, over {small_title}", None, ratios)
        | {"seconds": [statistics.median(column) for column in times]},
    ]


def seconds_of(measures: list[Callable[[], float]], pairs: int) -> list[list[float]]:
    """Return the seconds of each measure in ``pairs`` turns; a turn is the median of nine."""
    turns = [[statistics.median(measure() for _ in range(9)) for measure in measures] for _ in range(pairs + 1)]
    return [list(column) for column in zip(*turns[1:])]  # the first warms up


class Run:
    """Searches a trie with the same random logits each time.

    Args:
        trie: the constraint.
    """

    def __init__(self, trie: Trie) -> None:
        def best(totals: Tensor, keys: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
            return totals.flatten(1).topk(min(NUM_BEAMS, totals[0].numel()))

        ids = [trie.token_ids(depth) for depth in range(trie.max_tokens)]
        config = Qwen2Config(vocab_size=4096, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        config.num_key_value_heads, config.intermediate_size = 1, 8
        readout = Readout(Qwen2ForCausalLM(config), ids, temperature=1.0, whole=False)
        self.search = _Search(trie, readout, None, 0, best)
        generator = torch.Generator().manual_seed(0)
        shapes = [
            (NUM_PROMPTS, NUM_BEAMS if depth else 1, len(places.rows)) for depth, places in enumerate(readout.depths)
        ]
        self.frontiers: list[Tensor] = []
        self.logits = [torch.randn(shape, generator=generator) for shape in shapes]

    def seconds_per_step(self) -> float:
        """Return the mean over the levels of one search."""
        zeros = torch.zeros(NUM_PROMPTS, 1)
        frontier = _Frontier(zeros.long(), zeros, zeros)
        start = time.process_time()
        for depth, logits in enumerate(self.logits):
            frontier, _ = _step(self.search, frontier, logits[:, : frontier.nodes.shape[1]], depth)
        return (time.process_time() - start) / len(self.logits)

    def seconds_per_look_up(self) -> float:
        """Return the mean over the levels of finding the beams' continuations."""
        if not self.frontiers:
            zeros = torch.zeros(NUM_PROMPTS, 1)
            frontier = _Frontier(zeros.long(), zeros, zeros)
            for depth, logits in enumerate(self.logits):
                self.frontiers.append(frontier.nodes)
                frontier, _ = _step(self.search, frontier, logits[:, : frontier.nodes.shape[1]], depth)
        start = time.process_time()
        for _ in range(REPEATS):
            for depth, nodes in enumerate(self.frontiers):
                self.search.constraint.children(nodes, depth)
        return (time.process_time() - start) / len(self.logits) / REPEATS


def result(name: str, target: float | None, values: list[float]) -> dict[str, Any]:
    return figures(name, target, values) | conditions(("torch", "numpy"), torch.get_num_threads())


def build_items(items: int, codes: tuple[int, ...]) -> np.ndarray:
    """Return (N, L) distinct random completions; every level has its own tokens."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, codes, (int(1.2 * items), len(codes))) + np.cumsum((0, *codes[:-1]))
    return rng.permutation(np.unique(drawn, axis=0))[:items]


if __name__ == "__main__":
    main()
