"""SFT on demonstrations: what is trained on is what sampling continues, in whole global batches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from toys import tiny_job, tiny_model, tiny_recipe

from rlkit.algorithms.sft import IGNORE, _tokenized, sft
from rlkit.policy.sampler import encode_prompts
from rlkit.records import Demonstration, Prompt, Source

HERE = Source("here")
ROWS = [("<|user|>2+3?<|assistant|>", "5"), ("caf\u00e9 ", "cr\u00e8me"), ("a <a_0>", "<a_1>"), ("no answer", "")]


def trainer(folder: Path, **train: Any) -> Any:
    """Return the trainer of instruct prompts: 45 demonstrations, or so, in batches of 16."""
    tree = copy.deepcopy(tiny_recipe())
    tree["domain"] |= {"template": "instruct", "data": {"type": "demo", "users": 20, "items": 60}}
    tree["stages"]["sft"]["train"] |= train
    return sft(tiny_job(folder, "sft", tree))


def tokenized(max_tokens: int) -> tuple[Any, list[tuple[list[int], list[int]]]]:
    """Return the tokenizer, and the ids and labels of ``ROWS``."""
    loaded = tiny_model(("<a_0>", "<a_1>"))
    rows = [Demonstration(prompt, answer, HERE, "chat") for prompt, answer in ROWS]
    data = _tokenized(rows, loaded, max_tokens)
    return loaded.tokenizer, list(zip(data["input_ids"], data["labels"]))


def test_training_sees_the_tokens_of_sampling_then_the_answer_and_its_end() -> None:
    tokenizer, rows = tokenized(64)
    for (prompt, answer), (ids, labels) in zip(ROWS, rows, strict=True):
        sampled = encode_prompts(tokenizer, [Prompt("key", prompt, answer, HERE)], "cpu")[0][0].tolist()
        wanted = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        assert ids == sampled + wanted
        assert labels == [IGNORE] * len(sampled) + wanted


def test_a_long_example_is_cut_on_the_left_so_that_the_answer_stays() -> None:
    _, whole = tokenized(64)
    _, cut = tokenized(8)
    assert cut == [(ids[-8:], labels[-8:]) for ids, labels in whole]
    assert [len(ids) for ids, _ in cut] == [8, 8, 5, 8]
    # the second answer is six bytes and its end the seventh token, so one token of its prompt is left
    assert [labels.count(IGNORE) for _, labels in cut] == [6, 1, 3, 7]


@pytest.mark.parametrize("micro_batch_size", [None, 4])
def test_an_epoch_is_whole_global_batches_and_its_rest_another_one_each_time(
    micro_batch_size: int | None, tmp_path: Path
) -> None:
    made = trainer(tmp_path, micro_batch_size=micro_batch_size)
    rows = len(made.train_dataset)
    assert rows % 16
    loader = made.get_train_dataloader()
    assert len(loader) == rows // 16 * (16 // (micro_batch_size or 16))
    assert made.args.gradient_accumulation_steps == 16 // (micro_batch_size or 16)
    seen = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        seen.append([tuple(ids[mask].tolist()) for b in loader for ids, mask in zip(b["input_ids"], b["labels"] != 0)])
    assert len(seen[0]) == len(seen[1]) == rows // 16 * 16
    assert seen[0] != seen[1]
    assert sorted(seen[0]) != sorted(seen[1])


def test_what_a_recipe_adds_wins_over_what_is_chosen_here(tmp_path: Path) -> None:
    extra = {
        "train_sampling_strategy": "sequential",
        "dataloader_drop_last": True,
        "greater_is_better": True,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    made = trainer(tmp_path, extra=extra)
    assert {name: getattr(made.args, name) for name in extra} == extra
    first = next(iter(made.get_train_dataloader()))
    assert (
        first["input_ids"][3][: len(made.train_dataset[3]["input_ids"])].tolist() == made.train_dataset[3]["input_ids"]
    )
