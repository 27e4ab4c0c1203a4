"""SFT on demonstrations: what is trained on is what sampling continues, and every option has its effect."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from toys import tiny_job, tiny_model, tiny_recipe
from transformers import MambaConfig, MambaForCausalLM

from rlkit.algorithms.demonstrations import check_rows_keep_apart, tokenized
from rlkit.algorithms.offline import IGNORE
from rlkit.algorithms.sft import sft
from rlkit.errors import DataError, ModelError, RecipeError
from rlkit.models.load import LoadedModel
from rlkit.policy.sampler import encode_prompts
from rlkit.records import Demonstration, Prompt, Source

HERE = Source("here", 7)
ROWS = [("<|user|>2+3?<|assistant|>", "5"), ("caf\u00e9 ", "cr\u00e8me"), ("a <a_0>", "<a_1>"), ("no answer", "")]
CHAT = {"type": "chat", "demonstrations": {"type": "chat_demo", "conversations": 40}}


def trainer(folder: Path, **train: Any) -> Any:
    """Return the trainer of instruct prompts: 45 demonstrations, or so, in batches of 16."""
    tree = copy.deepcopy(tiny_recipe())
    tree["domain"] |= {"template": "instruct", "data": {"type": "demo", "users": 20, "items": 60}}
    tree["stages"]["sft"]["train"] |= train
    return sft(tiny_job(folder, "sft", tree))


def chat_trainer(folder: Path, algorithm: dict[str, Any] | None = None, **train: Any) -> Any:
    """Return the trainer of forty generated conversations, in batches of eight."""
    tree = copy.deepcopy(tiny_recipe(domain=CHAT))
    stage = tree["stages"]["sft"]
    stage["algorithm"] |= {"max_tokens": 128, **(algorithm or {})}
    stage["train"] |= {"batch_size": 8, "max_steps": 2, "evaluate_every_steps": 1, **train}
    if "model" in stage["train"]:
        tree["model"] |= stage["train"].pop("model")
    return sft(tiny_job(folder, "sft", tree))


def tokens(rows: list[Demonstration], max_tokens: int) -> tuple[Any, list[tuple[list[int], list[int]]]]:
    """Return the tokenizer, and the ids and labels of rows."""
    loaded = tiny_model(("<a_0>", "<a_1>"))
    data = tokenized(rows, loaded, max_tokens)
    return loaded.tokenizer, list(zip(data["input_ids"], data["labels"]))


def of_rows(max_tokens: int) -> tuple[Any, list[tuple[list[int], list[int]]]]:
    """Return the tokenizer, and the ids and labels of ``ROWS``."""
    return tokens([Demonstration(prompt, answer, HERE, "chat") for prompt, answer in ROWS], max_tokens)


# ---- tokens and masks


def test_training_sees_the_tokens_of_sampling_then_the_answer_and_its_end() -> None:
    tokenizer, rows = of_rows(64)
    for (prompt, answer), (ids, labels) in zip(ROWS, rows, strict=True):
        sampled = encode_prompts(tokenizer, [Prompt("key", prompt, answer, HERE)], "cpu")[0][0].tolist()
        wanted = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        assert ids == sampled + wanted
        assert labels == [IGNORE] * len(sampled) + wanted


def test_a_long_example_is_cut_on_the_left_so_that_the_answer_stays() -> None:
    _, whole = of_rows(64)
    _, cut = of_rows(8)
    assert cut == [(ids[-8:], labels[-8:]) for ids, labels in whole]
    assert [len(ids) for ids, _ in cut] == [8, 8, 5, 8]
    # the second answer is six bytes and its end the seventh token, so one token of its prompt is left
    assert [labels.count(IGNORE) for _, labels in cut] == [6, 1, 3, 7]


def test_every_turn_of_the_assistant_is_trained_on_and_nothing_else() -> None:
    earlier = (("<|user|>hi<|assistant|>", "hey<|end|>"), ("<|user|>ab<|assistant|>", "c<|end|>"))
    row = Demonstration("<|user|>d<|assistant|>", "ef", HERE, "chat", earlier)
    tokenizer, [(ids, labels)] = tokens([row], 64)
    # user h i assistant | h e y end | user a b assistant | c end | user d assistant | e f end
    mask = [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    assert [int(label != IGNORE) for label in labels] == mask
    assert [label for label in labels if label != IGNORE] == [token for token, one in zip(ids, mask) if one]
    assert tokenizer.decode(ids) == (
        "<|user|>hi<|assistant|>hey<|end|><|user|>ab<|assistant|>c<|end|><|user|>d<|assistant|>ef<|end|>"
    )


def test_a_row_with_nothing_to_train_on_is_named_by_its_line() -> None:
    with pytest.raises(DataError, match="here:7: nothing to train on"):
        tokens([Demonstration("", "", HERE)], 64)


def test_answers_that_leave_no_room_for_their_prompts_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    tokens([Demonstration("prompt", "a long answer", HERE), Demonstration("prompt", "a", HERE)], 8)
    assert "1 of 2 answers fill max_tokens 8" in caplog.text


# ---- batches and checkpoints


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


@pytest.mark.parametrize("make", [trainer, chat_trainer])
def test_checkpoints_that_nothing_looked_at_are_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"sft.train.save_every_steps: must be a multiple .* is 2, got 3; the best"):
        make(tmp_path, evaluate_every_steps=2, save_every_steps=3)
    made = make(tmp_path, evaluate_every_steps=2, save_every_steps=4)
    assert (made.args.eval_steps, made.args.save_steps) == (2, 4)


def test_going_on_from_the_last_step_takes_no_further_one(tmp_path: Path) -> None:
    first = chat_trainer(tmp_path, keep_checkpoints=3)
    first.train()
    (checkpoint,) = tmp_path.rglob("checkpoint-2")
    again = chat_trainer(tmp_path, keep_checkpoints=3)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == 2
    # the best of both is the checkpoint of step 2, so equal weights mean that no step was taken after it
    saved = torch.cat([one.flatten() for one in first.model.state_dict().values()])
    assert torch.equal(torch.cat([one.flatten() for one in again.model.state_dict().values()]), saved)


def test_training_stops_early_where_the_valid_loss_no_longer_falls(tmp_path: Path) -> None:
    made = chat_trainer(tmp_path, max_steps=30, learning_rate=3.0, schedule="constant", early_stopping_patience=2)
    made.train()
    losses = [row["eval_loss"] for row in made.state.log_history if "eval_loss" in row]
    assert made.state.global_step == len(losses) < 30
    assert losses.index(min(losses)) == len(losses) - 3, "two looks without a better one"


# ---- rows that share a sequence


def loss_of_all(made: Any) -> tuple[float, int]:
    """Return the loss per token over the whole train set as one batch, and how many tokens count."""
    batch = made.data_collator([made.train_dataset[index] for index in range(len(made.train_dataset))])
    count = made._get_num_items_in_batch([batch], torch.device("cpu"))
    made.model.eval()
    with torch.no_grad():
        return float(made.compute_loss(made.model, batch, num_items_in_batch=count)), int(count)


@pytest.mark.parametrize("option", ["packing", "padding_free"])
def test_rows_that_share_a_sequence_have_the_loss_of_rows_apart(option: str, tmp_path: Path) -> None:
    plain, shared = chat_trainer(tmp_path / "a"), chat_trainer(tmp_path / "b", {option: True})
    assert loss_of_all(shared) == (pytest.approx(loss_of_all(plain)[0], abs=1e-5), loss_of_all(plain)[1])
    assert shared.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-5)
    batch = next(iter(shared.get_train_dataloader()))
    assert "attention_mask" not in batch
    assert batch["input_ids"].shape[0] == 1, "no padding"


def test_packing_fills_rows_and_batches_count_them(tmp_path: Path) -> None:
    made = chat_trainer(tmp_path, {"packing": True}, batch_size=4, max_steps=None)
    plain = chat_trainer(tmp_path / "plain")
    lengths = [sum(row["seq_lengths"]) for row in made.train_dataset]
    assert max(lengths) <= 128
    assert len(lengths) < len(plain.train_dataset) / 1.5
    assert sum(lengths) == sum(len(row["input_ids"]) for row in plain.train_dataset)
    assert made.args.eval_steps == 1
    made.train()
    assert made.state.global_step == len(lengths) // 4


def test_a_model_that_would_mix_rows_is_refused() -> None:
    config = MambaConfig(vocab_size=262, hidden_size=32, num_hidden_layers=1, state_size=4)
    rows = datasets.Dataset.from_dict({"input_ids": [[7, 8, 9, 10], [11, 12, 13]]})
    with pytest.raises(ModelError, match="packing and padding_free would mix rows: MambaForCausalLM"):
        check_rows_keep_apart(LoadedModel(MambaForCausalLM(config), tiny_model().tokenizer, []), rows)
    check_rows_keep_apart(tiny_model(), rows)


# ---- noise and adapters


def first_layer_inputs(made: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Train, and return for every training forward what the first layer read, and the embeddings of its tokens."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    decoder = made.model.get_decoder()
    now: dict[str, torch.Tensor] = {}
    embedding = made.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, inputs: now.update(ids=inputs[0]))

    def read(_: Any, inputs: Any) -> None:
        if made.model.training:
            seen.append((inputs[0].detach(), embedding.weight[now["ids"]].detach().clone()))

    decoder.layers[0].register_forward_pre_hook(read)
    made.train()
    return seen


def test_neftune_adds_uniform_noise_to_the_embeddings_while_training(tmp_path: Path) -> None:
    assert all(torch.equal(*pair) for pair in first_layer_inputs(chat_trainer(tmp_path / "plain")))
    pairs = first_layer_inputs(chat_trainer(tmp_path / "noisy", {"neftune_alpha": 5.0}))
    assert len(pairs) == 2
    for read, embedded in pairs:
        noise = (read - embedded).abs()
        bound = 5.0 / (read.shape[1] * read.shape[2]) ** 0.5
        assert 0.9 * bound < float(noise.max()) <= bound * 1.001
        assert float(noise.mean()) == pytest.approx(bound / 2, rel=0.1)  # uniform


def test_lora_trains_the_adapter_alone(tmp_path: Path) -> None:
    made = chat_trainer(tmp_path, model={"adapter": {"rank": 2}})
    before = {name: one.detach().clone() for name, one in made.model.named_parameters()}
    made.train()
    changed = {name for name, one in made.model.named_parameters() if not torch.equal(one, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_settings_that_whole_sequences_do_not_use_are_refused(tmp_path: Path) -> None:
    tree = tiny_recipe()
    tree["stages"]["sft"]["algorithm"] |= {"packing": True, "neftune_alpha": 5}
    with pytest.raises(RecipeError, match=r"stages\.sft\.algorithm: packing and neftune_alpha do nothing for whole"):
        sft(tiny_job(tmp_path, "sft", tree))


def test_a_conversation_from_a_file_is_masked_turn_by_turn(tmp_path: Path) -> None:
    talk = [("user", "hi"), ("assistant", "hello"), ("user", "2+3?"), ("assistant", "5"), ("user", "bye")]
    row = {"messages": [{"role": role, "content": text} for role, text in talk]}
    other = {"messages": [{"role": "user", "content": "other"}, {"role": "assistant", "content": "one"}]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")
    tree = tiny_recipe(domain={"type": "chat", "system": "Be brief.", "demonstrations": str(tmp_path / "rows.jsonl")})
    tree["stages"]["sft"]["train"] |= {"batch_size": 1}
    made = sft(tiny_job(tmp_path / "run", "sft", tree))
    sets = [*made.train_dataset, *made.eval_dataset]
    (found,) = [one for one in sets if "bye" not in made.processing_class.decode(one["input_ids"]) and len(sets) == 2
                and "hello" in made.processing_class.decode(one["input_ids"])]  # fmt: skip
    said = [token for token, label in zip(found["input_ids"], found["labels"]) if label != IGNORE]
    assert made.processing_class.decode(said) == "hello<|end|>5<|end|>"
    assert made.processing_class.decode(found["input_ids"]).startswith("<|system|>Be brief.<|user|>hi<|assistant|>hel")
