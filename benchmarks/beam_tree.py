"""How much faster the beam tree is than Hugging Face beam search with a prefix table, at the same model and catalog.

The peer is ``transformers`` ``generate(num_beams=50)`` with a logits processor that looks every beam up in a Python
dictionary, as recommenders do it today. Both alternate in one process on one thread; the figure is the median of the
pairs' ratios of CPU time (which other load on the machine does not stretch). Before timing, items and scores are
compared: raw scores (normalized over the vocabulary) are what the peer computes; scores over the allowed children are
rlkit's default and are timed against the same peer.

    OMP_NUM_THREADS=1 python benchmarks/beam_tree.py [--pairs N] [--out FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from common import argument_parser, conditions, speedup, write_rows
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlkit.policy.beam_tree import Beams, beam_search
from rlkit.recsys.trie import Trie

NUM_PROMPTS, PROMPT_TOKENS, NUM_BEAMS, VOCABULARY = 4, 100, 50, 800
ITEMS, CODES = 3686, (48, 256, 256)  # as in Industrial_and_Scientific
MODELS = {"nano": (128, 256, 2), "three layers": (128, 512, 3)}  # width, feed-forward width, layers
TARGET = 20.0
PAD, END = 0, 1


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    rows = [row for name in MODELS for row in measure(name, arguments.pairs)]
    for row in rows:
        low, high = row["spread"]
        print(
            f"{row['name']}: {row['measured']:.1f}x (pairs {low:.1f} to {high:.1f}; target >= {row['target']:.0f}x; "
            f"{row['seconds'][0] * 1e3:.0f} ms against {row['seconds'][1] * 1e3:.1f} ms)"
            + ("" if row["score_difference"] is None else f"; scores differ by {row['score_difference']:.0e}")
        )
    write_rows(arguments.out, rows)


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__file__, __doc__)
    parser.add_argument("--pairs", type=int, default=11)
    return parser.parse_args()


def measure(name: str, pairs: int) -> list[dict[str, Any]]:
    """Return a row for raw scores and one for scores over the allowed children."""
    torch.manual_seed(0)
    model, items = build_model(*MODELS[name]), build_items()
    trie = Trie.build(items, end_token=None)
    prompts = torch.randint(5, VOCABULARY, (NUM_PROMPTS, PROMPT_TOKENS))
    processors = LogitsProcessorList([PrefixTable(items)])

    def tree(normalization: Literal["children", "vocabulary"]) -> Beams:
        return beam_search(
            model,
            prompts,
            torch.ones_like(prompts),
            trie,
            num_beams=NUM_BEAMS,
            normalization=normalization,
            pad_token_id=PAD,
        )

    def peer() -> tuple[Tensor, Tensor]:
        return generate(model, prompts, processors)

    difference = largest_difference(*peer(), tree("vocabulary"))
    assert difference < 1e-4, difference
    title = (
        f"{name} ({model.num_parameters() / 1e6:.1f}M parameters, B={NUM_PROMPTS}, P={PROMPT_TOKENS}, K={NUM_BEAMS})"
    )
    rows = []
    for normalization, known in (("vocabulary", difference), ("children", None)):
        times = alternate(peer, lambda which=normalization: tree(which), pairs)  # type: ignore[misc]
        row = speedup(f"beam tree over {normalization}, {title}", TARGET, times)
        rows.append(row | conditions(("torch", "transformers"), torch.get_num_threads()) | {"score_difference": known})
    return rows


class PrefixTable(LogitsProcessor):
    """A Python look-up for every beam, and a mask over the vocabulary.

    Args:
        items: (N, L) the allowed completions.
    """

    def __init__(self, items: np.ndarray) -> None:
        children: dict[tuple[int, ...], set[int]] = {}
        for row in items.tolist():
            for depth, token in enumerate(row):
                children.setdefault(tuple(row[:depth]), set()).add(token)
        self.children = {prefix: list(tokens) for prefix, tokens in children.items()}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: D102
        scores, closed = scores.log_softmax(-1), torch.full_like(scores, -1e6)
        for row, prefix in enumerate(input_ids[:, PROMPT_TOKENS:].tolist()):
            closed[row, self.children.get(tuple(prefix), [END])] = 0
        return scores + closed


def generate(model: PreTrainedModel, prompts: Tensor, processors: LogitsProcessorList) -> tuple[Tensor, Tensor]:
    """Return the peer's completions (B, K, L) and their summed log-probs (B, K)."""
    config = GenerationConfig(
        num_beams=NUM_BEAMS,
        num_return_sequences=NUM_BEAMS,
        max_new_tokens=len(CODES),
        length_penalty=0.0,
        do_sample=False,
        pad_token_id=PAD,
        eos_token_id=END,
        return_dict_in_generate=True,
        output_scores=True,
    )
    mask = torch.ones_like(prompts)
    output = model.generate(prompts, attention_mask=mask, generation_config=config, logits_processor=processors)
    return (
        output.sequences[:, PROMPT_TOKENS:].view(len(prompts), NUM_BEAMS, len(CODES)),
        output.sequences_scores.view(len(prompts), NUM_BEAMS),
    )


def largest_difference(tokens: Tensor, scores: Tensor, beams: Beams) -> float:
    """Return by how much the scores of the same items differ; other items only where they tie for the last place."""
    worst = float((scores - beams.scores).abs().max())
    for row in range(len(tokens)):
        theirs = {tuple(item): score for item, score in zip(tokens[row].tolist(), scores[row].tolist())}
        ours = {tuple(item): score for item, score in zip(beams.tokens[row].tolist(), beams.scores[row].tolist())}
        last = min(ours.values())
        for item in theirs.keys() | ours.keys():
            worst = max(worst, abs(theirs.get(item, last) - ours.get(item, last)))
    return worst


def alternate(peer: Callable[[], Any], subject: Callable[[], Any], pairs: int) -> list[tuple[float, float]]:
    """Time both in turn; the subject's time is the median of five runs, as one takes milliseconds."""
    return [(seconds(peer), statistics.median(seconds(subject) for _ in range(5))) for _ in range(pairs)]


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def build_model(width: int, feed_forward: int, layers: int) -> PreTrainedModel:
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config).eval()


def build_items() -> np.ndarray:
    """Return (N, L) distinct random completions; every level has its own tokens."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, CODES, (2 * ITEMS, len(CODES)))
    distinct = np.unique(drawn + 10 + np.cumsum((0, *CODES[:-1])), axis=0)
    return rng.permutation(distinct)[:ITEMS]


if __name__ == "__main__":
    main()
