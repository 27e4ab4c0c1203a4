"""How well small reward models, trained from scratch on a thousand real pairs, tell which answer was preferred.

Pairs are split by prompt into five folds: each fold is predicted by a model that saw none of its prompts, so every pair
of the file counts once. Beside the accuracy stands that of length alone, in the better of its two directions. Intervals
and the paired test draw prompts, not pairs. The models read answers only: so few prompts teach nothing about prompts.

    OMP_NUM_THREADS=1 python benchmarks/reward_accuracy.py [--data FOLDER] [--only NAME] [--out FILE]
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import argument_parser, conditions, write_rows
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen2Config, Qwen2ForCausalLM, set_seed

from rlkit.algorithms.reward_model import reward_model
from rlkit.job import Job
from rlkit.models.tokenizer import CHAT_TEMPLATE
from rlkit.ops.bootstrap import paired_differences
from rlkit.ops.pairwise import accuracy, wins
from rlkit.plugins import load_plugins
from rlkit.recipe import recipe_from_tree
from rlkit.run_directory import RunDirectory

FOLDS, VALID_SHARE = 5, 0.12
SPECIAL = ("<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


class Pair(NamedTuple):
    """A prompt, which only says what belongs together, and two answers."""

    prompt: str
    chosen: str
    rejected: str


class Source(NamedTuple):
    """A file of pairs and what suits it."""

    file: str
    max_tokens: int
    vocabulary: int


SOURCES = {
    "hh harmless": Source("hh_harmless_visible.jsonl.gz", 128, 3000),
    "alpaca_eval": Source("alpaca_eval_gpt4_pairs_visible.jsonl", 320, 2000),
}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    rows = []
    for name in [arguments.only] if arguments.only else SOURCES:
        found = measure(name, list(read(arguments.data / SOURCES[name].file)), arguments.folds)
        print(json.dumps(found), flush=True)
        rows += rows_of(found)
    write_rows(arguments.out, rows)


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__file__, __doc__)
    default = Path(__file__).parents[2] / "shared" / "data" / "preference_chat"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--only", choices=list(SOURCES))
    parser.add_argument("--folds", type=int, default=FOLDS, help="how many of the folds are predicted")
    return parser.parse_args()


def read(path: Path) -> Iterator[Pair]:
    """Yield the pairs of a file whose answers differ; of dialogues the last answer is compared."""
    mark = "\n\nAssistant:"
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for row in map(json.loads, text.splitlines()):
        if "prompt" not in row:
            prompt, _, chosen = row["chosen"].rpartition(mark)
            row = {"prompt": prompt, "chosen": chosen, "rejected": row["rejected"].rpartition(mark)[2]}
        pair = Pair(row["prompt"].strip(), row["chosen"].strip(), row["rejected"].strip())
        if pair.chosen and pair.rejected and pair.chosen != pair.rejected:
            yield pair


def measure(name: str, pairs: Sequence[Pair], folds: int) -> dict[str, Any]:
    """Predict every fold by a model trained on the others."""
    prompts, codes = np.unique([pair.prompt for pair in pairs], return_inverse=True)
    rng = np.random.default_rng(0)
    fold = rng.permutation(len(prompts))[codes] % FOLDS
    valid = (rng.random(len(prompts)) < VALID_SHARE)[codes]
    seen, scores = np.zeros(len(pairs), dtype=bool), np.zeros((len(pairs), 2))
    for number in range(folds):
        parts = {"train": (fold != number) & ~valid, "valid": (fold != number) & valid, "test": fold == number}
        scores[parts["test"]] = predicted(
            {split: [pair for pair, inside in zip(pairs, mask) if inside] for split, mask in parts.items()},
            SOURCES[name],
        )
        seen |= parts["test"]
        print(f"{name}: fold {number}, accuracy so far {wins(*scores[seen].T).mean():.3f}", flush=True)
    lengths = np.array([[len(pair.chosen), len(pair.rejected)] for pair in pairs])
    longer = wins(*lengths[seen].T)
    baseline = longer if longer.mean() >= 0.5 else 1 - longer
    won = wins(*scores[seen].T)
    difference = paired_differences(baseline[:, None], won[:, None], codes[seen])[0]
    return {
        "name": name,
        "pairs": int(seen.sum()),
        "accuracy": accuracy(won, codes[seen]),
        "length": accuracy(baseline, codes[seen]) | {"rule": "longer" if longer.mean() >= 0.5 else "shorter"},
        "difference": [difference.difference, difference.low, difference.high],
        "p": difference.p,
    }


def rows_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for the model and one for length alone, each with its 95 % interval as the spread."""
    length, place = found["length"], conditions(("torch", "transformers", "trl"), torch.get_num_threads())
    title = f"{found['name']}, {found['pairs']} pairs"
    mean, low, high = found["difference"]
    by = f"{mean:+.3f}, {low:+.3f} to {high:+.3f}, p {found['p']:.2g}"
    model = {
        "name": f"accuracy of a reward model from scratch on {title} (against length alone {by})",
        "target": length["value"],
        "measured": found["accuracy"]["value"],
        "spread": found["accuracy"]["interval"],
    }
    alone = {
        "name": f"accuracy of taking the {length['rule']} answer on {title}",
        "target": None,
        "measured": length["value"],
        "spread": length["interval"],
    }
    return [row | place for row in (model, alone)]


def predicted(splits: dict[str, list[Pair]], source: Source) -> np.ndarray:
    """Return (N, 2) rewards of the chosen and the rejected answers of the test split."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for split, pairs in splits.items():
            lines = (json.dumps({"prompt": "?", "chosen": pair.chosen, "rejected": pair.rejected}) for pair in pairs)
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        write_model(folder / "lm", splits["train"], source.vocabulary)
        trainer = reward_model(build_job(folder, source, len(splits["train"])))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        chosen, rejected = trainer.score_pairs(trainer.held_out.pairs)
    return np.stack([chosen.numpy(), rejected.numpy()], axis=1)


def build_job(folder: Path, source: Source, rows: int) -> Job:
    """Return the job of a stage that stops where the valid pairs get no likelier."""
    batch = 32
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "valid", "test")}
    train = {"batch_size": batch, "epochs": 6, "learning_rate": 5e-4, "weight_decay": 1.0, "warmup": 0.1}
    train |= {"evaluate_every_steps": max(1, rows // batch // 2), "early_stopping_patience": 4, "report_to": []}
    tree = {
        "name": "accuracy",
        "model": {"path": str(folder / "lm"), "dropout": 0.5},
        "domain": {
            "type": "chat",
            "preferences": {"path": files["train"], "valid": files["valid"], "test": files["test"]},
        },
        "stages": {"rm": {"algorithm": {"type": "reward_model", "max_tokens": source.max_tokens}, "train": train}},
        "engine": {"threads": 1, "device": "cpu"},
    }
    directory = RunDirectory(folder / "run")
    directory.open("", 0, {})
    job = Job(recipe_from_tree(tree).recipe, load_plugins(), directory, "rm")
    job.engine.prepare()
    return job


def write_model(folder: Path, pairs: Sequence[Pair], vocabulary: int) -> None:
    """Write a layer of attention with random weights, and a lowercase byte-level BPE of the train answers."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        min_frequency=3,
        show_progress=False,
    )
    bpe.train_from_iterator((text for pair in pairs for text in (pair.chosen, pair.rejected)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[3:])})
    tokenizer.chat_template = CHAT_TEMPLATE
    set_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), pad_token_id=0, **sizes, **heads)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
