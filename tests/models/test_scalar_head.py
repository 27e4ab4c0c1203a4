"""Reward heads: made on a backbone, saved and loaded with it, never filled with noise; scores under any padding."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import language_model_folder, tiny_model
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from rlkit.config.models import AdapterSettings, CausalLMSettings
from rlkit.errors import ModelError
from rlkit.models.head_files import head_problem, headless
from rlkit.models.load import LoadedModel, load_causal_lm, merged
from rlkit.models.scalar_head import (
    length_batches,
    load_scalar_head,
    new_scalar_head,
    pad_right,
    scalar_trainable,
    score_rows,
    sequence_scores,
    text_ids,
)
from rlkit.models.tokenizer import byte_tokenizer, fingerprint

ROWS = [[9, 20, 31, 2], [40, 2], [50, 51, 52, 53, 54, 55, 2], [60]]


def save(loaded: LoadedModel, folder: Path) -> Path:
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path) -> LoadedModel:
    return load_scalar_head(CausalLMSettings(path=str(folder)))


def causal_lm(name: str) -> LoadedModel:
    """Return a small language model of one of three architectures: two kinds of rotary positions, and learned ones."""
    if name == "qwen2":
        return tiny_model()
    torch.manual_seed(0)
    sizes = {"vocab_size": 262, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if name == "gpt2":
        return LoadedModel(GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, **sizes)), byte_tokenizer(), [])
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, **sizes
    )
    return LoadedModel(LlamaForCausalLM(config), byte_tokenizer(), [])


def one_by_one(model) -> torch.Tensor:
    return torch.stack([model(input_ids=torch.tensor([row])).logits[0, 0] for row in ROWS])


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt2"])
@torch.no_grad()
def test_a_row_has_the_same_score_alone_and_padded_on_either_side(architecture: str) -> None:
    model = new_scalar_head(causal_lm(architecture)).model.eval()
    alone = one_by_one(model)
    assert alone.std() > 1e-3  # the rows are told apart
    right, mask = pad_right(ROWS, model.config.pad_token_id)
    left = torch.stack([torch.tensor([0] * (7 - len(row)) + row) for row in ROWS])
    left_mask = torch.stack([torch.tensor([0] * (7 - len(row)) + [1] * len(row)) for row in ROWS])
    assert torch.allclose(sequence_scores(model, right, mask), alone, atol=1e-6)
    assert torch.allclose(sequence_scores(model, left, left_mask), alone, atol=1e-6)


def test_batches_of_like_lengths_score_rows_as_one_by_one_in_their_order() -> None:
    model = new_scalar_head(tiny_model()).model.eval()
    done: list[int] = []
    for size, tokens in ((2, 16_384), (64, 8), (64, 1)):
        scores = score_rows(model, ROWS, batch_size=size, batch_tokens=tokens, progress=done.append)
        assert torch.allclose(scores, one_by_one(model), atol=1e-5)
    assert done == [2, 4, 1, 3, 4, 1, 2, 3, 4]  # rows of 7, 4, 2 and 1 tokens


def test_a_batch_holds_rows_of_like_lengths_within_its_limits() -> None:
    # By length: 7 (row 2), 5 (row 3), 4 (row 0), 4 (row 4), 1 (row 1). Ten tokens hold one row of 7, two of 5 (padded).
    assert length_batches([4, 1, 7, 5, 4], batch_size=9, batch_tokens=10) == [[2], [3, 0], [4, 1]]
    assert length_batches([4, 1, 7, 5, 4], batch_size=2, batch_tokens=99) == [[2, 3], [0, 4], [1]]
    assert length_batches([], batch_size=2, batch_tokens=9) == []


def test_a_fresh_head_takes_the_backbone_over_and_is_drawn_from_its_seed() -> None:
    lm = tiny_model()
    backbone = lm.model.base_model
    first, again, other = (new_scalar_head(tiny_model(), seed).model for seed in (1, 1, 2))
    assert new_scalar_head(lm).model.base_model is backbone
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert first.score.weight.shape == (1, 32)
    assert 0.01 < first.score.weight.std() < 0.03  # Qwen2's initializer_range is .02


def test_a_saved_head_comes_back_here_and_in_transformers(tmp_path: Path) -> None:
    made = new_scalar_head(tiny_model())
    folder = save(made, tmp_path / "rm")
    before = score_rows(made.model.eval(), ROWS)
    assert torch.equal(score_rows(load(folder).model.eval(), ROWS), before)
    other = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert torch.equal(score_rows(other, ROWS), before)


def test_a_checkpoint_with_a_causal_head_gets_a_fresh_one_but_is_never_taken_for_a_reward_model(tmp_path) -> None:
    folder = language_model_folder(tmp_path / "lm")
    fresh = new_scalar_head(load_causal_lm(CausalLMSettings(path=str(folder))))
    assert score_rows(fresh.model.eval(), ROWS).std() > 0
    with pytest.raises(ModelError, match=r"model.path: no reward model in '.*lm': its weights hold no reward head; "):
        load(folder)
    assert headless(save(fresh, tmp_path / "rm")) is None


def broken(folder: Path, how: str) -> Path:
    """Damage a saved reward model."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "weights":
        weights.write_bytes((10**9).to_bytes(8, "little") + b"{}")
    elif how == "no weights":
        weights.unlink()
    elif how == "no config":
        config.unlink()
    else:
        tree = json.loads(config.read_text())
        tree["id2label"] = {str(label): str(label) for label in range(3)}
        config.write_text(json.dumps(tree))
    return folder


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("weights", "its config.json or its weights are damaged"),
        ("no weights", "it has no .safetensors weights"),
        ("no config", "it has no config.json"),
        ("labels", "its head gives 3 numbers, not one"),
    ],
)
def test_a_damaged_reward_model_is_named_with_the_reason_and_what_to_do(how: str, reason: str, tmp_path: Path) -> None:
    folder = broken(save(new_scalar_head(tiny_model()), tmp_path / "rm"), how)
    expected = f"rewards.path: no reward model in '{folder}': {reason}; name the model folder that a reward_model stage"
    assert (head_problem(folder, "rewards.path") or "").startswith(expected)
    with pytest.raises(ModelError, match="no reward model in"):
        load(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert headless(tmp_path / "none") == "there is no such folder"


def test_looking_for_a_head_loads_no_torch(tmp_path: Path) -> None:
    folder = save(new_scalar_head(tiny_model()), tmp_path / "rm")
    code = f"import sys; from rlkit.models.head_files import headless; assert headless({str(folder)!r}) is None; "
    code += "assert not {'torch', 'transformers', 'safetensors'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_only_the_head_is_trained_on_a_frozen_backbone() -> None:
    model = scalar_trainable(new_scalar_head(tiny_model()), None, freeze_backbone=True)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["score.weight"]


def test_lora_trains_the_head_and_merges_into_a_model_that_loads(tmp_path: Path) -> None:
    loaded = new_scalar_head(tiny_model())
    before = score_rows(loaded.model.eval(), ROWS)
    model = scalar_trainable(loaded, AdapterSettings(rank=2), freeze_backbone=False)
    trained = {name.split(".")[-3] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"lora_A", "lora_B", "modules_to_save"} == trained
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ids, mask = pad_right(ROWS, 0)
    for _ in range(2):  # LoRA's B starts at 0: its A moves from the second step on
        sequence_scores(model, ids, mask).sum().backward()
        optimizer.step()
    after = score_rows(model.eval(), ROWS)
    assert not torch.allclose(after, before, atol=1e-3)
    plain = merged(model)
    plain.save_pretrained(tmp_path / "rm")
    loaded.tokenizer.save_pretrained(tmp_path / "rm")
    assert torch.allclose(score_rows(load(tmp_path / "rm").model.eval(), ROWS), after, atol=1e-5)


def test_an_adapter_on_a_frozen_backbone_is_refused() -> None:
    with pytest.raises(ModelError, match=r"freeze_backbone: with model\.adapter"):
        scalar_trainable(new_scalar_head(tiny_model()), AdapterSettings(), freeze_backbone=True)


def test_the_end_of_an_answer_counts_where_padding_and_end_token_were_one() -> None:
    lm = tiny_model()
    before = fingerprint(lm.tokenizer)
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    loaded = new_scalar_head(lm)
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id == loaded.tokenizer.bos_token_id
    assert fingerprint(loaded.tokenizer) == before
    ended, cut = score_rows(loaded.model.eval(), [[40, 41, 2], [40, 41]])
    assert ended != cut


def test_a_tokenizer_with_one_special_token_keeps_it_for_both_and_says_so(tmp_path: Path, caplog) -> None:
    folder = language_model_folder(tmp_path / "lm")  # its end token pads as well
    with caplog.at_level(logging.WARNING, logger="rlkit"):
        loaded = new_scalar_head(load_causal_lm(CausalLMSettings(path=str(folder))))
    assert "the end of an answer is not scored" in caplog.text
    assert loaded.model.config.pad_token_id == loaded.tokenizer.eos_token_id
    again = load(save(loaded, tmp_path / "rm"))
    assert torch.allclose(score_rows(loaded.model.eval(), ROWS), score_rows(again.model.eval(), ROWS), atol=1e-6)


def test_texts_are_tokenized_apart_ended_and_cut_on_the_left() -> None:
    tokenizer = byte_tokenizer()
    prompt, answer = (tokenizer(text, add_special_tokens=False).input_ids for text in ("ab", "cde"))
    pairs = [("ab", "cde", True), ("ab", "cde", False)]
    assert text_ids(tokenizer, pairs, 99) == [[*prompt, *answer, tokenizer.eos_token_id], [*prompt, *answer]]
    assert text_ids(tokenizer, pairs, 4) == [[*answer, tokenizer.eos_token_id], [prompt[1], *answer]]


def test_an_architecture_without_a_reward_head_is_refused_by_name() -> None:
    mamba = MambaForCausalLM(MambaConfig(vocab_size=262, hidden_size=16, state_size=4, num_hidden_layers=1))
    with pytest.raises(ModelError, match="there is no reward head for 'MambaForCausalLM' in transformers; choose"):
        new_scalar_head(LoadedModel(mamba, byte_tokenizer(), []))
