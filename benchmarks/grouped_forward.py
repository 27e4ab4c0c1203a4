"""How much faster a policy's forward and backward pass is when the prompt is computed once per group.

The peer is the plain Hugging Face forward of every completion with its own copy of the prompt; with a constraint it is
rlkit's dense forward, as nothing else normalizes over a trie. Peer and subject alternate in one process on one thread;
the figure is the median of the pairs' ratios. Before timing, log-probs and gradients are compared.

    OMP_NUM_THREADS=1 python benchmarks/grouped_forward.py [--pairs N] [--out FILE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from common import argument_parser, conditions, speedup, write_rows
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import policy_forward
from rlkit.recsys.trie import Trie

NUM_PROMPTS, PROMPT_TOKENS, GROUP_SIZE, TOKENS, VOCABULARY = 4, 100, 16, 5, 800
SHAPE = f"G={GROUP_SIZE}, P={PROMPT_TOKENS}, C={TOKENS}, B={NUM_PROMPTS}"
MODELS = {"nano": (128, 2), "30M": (512, 8)}  # width, layers
TARGET = 8.0
ITEMS, CODES = 3686, 150


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    rows = [row for name in arguments.models for row in measure(name, arguments.pairs)]
    for row in rows:
        low, high = row["spread"]
        target = f"target >= {row['target']:.0f}x; " if row["target"] else ""
        print(
            f"{row['name']}: {row['measured']:.1f}x (pairs {low:.1f} to {high:.1f}; {target}"
            f"{row['seconds'][0]:.3f} s dense, {row['seconds'][1]:.3f} s grouped); log-probs differ by "
            f"{row['logprob_difference']:.0e}, gradients by {row['gradient_difference']:.0e}"
        )
    write_rows(arguments.out, rows)


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__file__, __doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--pairs", type=int, default=15, help="for the nano model; the larger one gets a fifth")
    return parser.parse_args()


def measure(name: str, pairs: int) -> list[dict[str, Any]]:
    """Return a row for the whole vocabulary and one for a constraint."""
    torch.manual_seed(0)
    model, (batch, trie) = build_model(*MODELS[name]), build_batch()
    pairs = pairs if name == "nano" else max(3, pairs // 5)

    def children(mode: Any) -> Tensor:
        return policy_forward(model, batch, constraint=trie, normalization="children", mode=mode).logprobs

    def vocabulary() -> Tensor:
        return policy_forward(model, batch).logprobs

    rows = [
        compare(model, f"grouped forward + backward, {name}", (lambda: plain(model, batch), vocabulary), pairs),
        compare(
            model,
            f"grouped forward + backward over allowed children, {name}",
            (lambda: children("dense"), lambda: children("auto")),
            pairs,
        ),
    ]
    rows[0]["target"] = TARGET
    return rows


def plain(model: PreTrainedModel, batch: GroupBatch) -> Tensor:
    """Return (B, G, C) log-probs as other trainers compute them: the prompt once per completion."""
    completions = batch.completions.flatten(0, 1)
    ids = torch.cat([batch.prompts.repeat_interleave(GROUP_SIZE, 0), completions], 1)
    logits = model(input_ids=ids, logits_to_keep=TOKENS + 1, use_cache=False).logits[:, :-1]
    return logits.log_softmax(-1).gather(-1, completions.unsqueeze(-1)).view(batch.completions.shape)


def compare(
    model: PreTrainedModel, name: str, forwards: tuple[Callable[[], Tensor], Callable[[], Tensor]], pairs: int
) -> dict[str, Any]:
    """Check that the dense and the grouped forward give the same, then time them in turn."""
    dense, grouped = forwards
    (right, right_gradient), (values, gradient) = step(model, dense), step(model, grouped)
    difference = float((values - right).abs().max())
    gradient_difference = float((gradient - right_gradient).norm() / right_gradient.norm())
    assert difference < 1e-5, difference
    assert gradient_difference < 1e-4, gradient_difference
    times = [(seconds(model, dense), seconds(model, grouped)) for _ in range(pairs)]
    return {
        **speedup(f"{name} ({model.num_parameters() / 1e6:.1f}M parameters, {SHAPE})", None, times),
        "logprob_difference": difference,
        "gradient_difference": gradient_difference,
        **conditions(("torch", "transformers"), torch.get_num_threads()),
    }


def step(model: PreTrainedModel, forward: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Run forward and backward; return the log-probs and the flat gradient."""
    model.zero_grad()
    logprobs = forward()
    (logprobs * torch.linspace(-1, 1, GROUP_SIZE)[:, None]).mean().backward()
    return logprobs.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters()])


def seconds(model: PreTrainedModel, forward: Callable[[], Tensor]) -> float:
    model.zero_grad()
    weights = torch.linspace(-1, 1, GROUP_SIZE)[:, None]
    start = time.perf_counter()
    (forward() * weights).mean().backward()
    return time.perf_counter() - start


def build_model(width: int, layers: int) -> PreTrainedModel:
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(2, width // 64),
        num_key_value_heads=max(1, width // 128),
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


def build_batch() -> tuple[GroupBatch, Trie]:
    """Return random prompts with completions out of a random trie of 5 levels."""
    first = 10 + CODES * torch.arange(TOKENS)  # each level has its own tokens
    items = torch.unique(first + torch.randint(0, CODES, (ITEMS, TOKENS)), dim=0)
    completions = items[torch.randint(0, len(items), (NUM_PROMPTS, GROUP_SIZE))]  # (B, G, C)
    prompts = torch.randint(5, VOCABULARY, (NUM_PROMPTS, PROMPT_TOKENS))
    batch = GroupBatch(prompts, torch.ones_like(prompts), completions, torch.ones_like(completions))
    return batch, Trie.build(items.numpy(), end_token=None)


if __name__ == "__main__":
    main()
