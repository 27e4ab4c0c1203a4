"""Models from Hugging Face folders: new rows, what is trained of them, adapters, and folders that are no model."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer, T5Config

from rlkit.config.models import AdapterSettings, CausalLMSettings
from rlkit.errors import ModelError
from rlkit.models.load import LoadedModel, load_causal_lm, make_trainable, merged
from rlkit.models.tokenizer import byte_tokenizer, fingerprint, matrices

SIDS = ("<a_0>", "<a_1>", "<b_0>", "<b_1>")
CORPUS = ["the user bought paper and pens", "the user read the paper", "paper, pens and ink for the office"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = "the paper <a_1><b_0> and caf\u00e9 cafe\u0301"
either_head = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


@cache
def bpe() -> Tokenizer:
    """Train a byte-level BPE of 290 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def model_folder(folder: Path, tied: bool, tokenizer_class: Any = PreTrainedTokenizerFast) -> Path:
    """Write a random Qwen2 model of 320 rows, more than its tokenizer needs, as real checkpoints have them."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for layer in matrices(model):
            layer.weight += 1  # so that the mean of the old rows is far from zero
    model.save_pretrained(folder)
    tokenizer = tokenizer_class(tokenizer_object=bpe(), eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, new_tokens: tuple[str, ...] = SIDS, **settings: Any) -> LoadedModel:
    return load_causal_lm(CausalLMSettings(path=str(folder), **settings), new_tokens=new_tokens)


def logits(model: Any) -> Tensor:
    model.eval()
    return model(input_ids=torch.arange(280, 294)[None]).logits


def train_a_step(model: Any, rows: list[int]) -> None:
    """Take a step of AdamW on a text that holds the new tokens."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.0)
    ids = torch.tensor([[5, 7, *rows, 9]])
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


# ---- loading


@either_head
def test_new_tokens_get_rows_near_the_mean_and_old_rows_stay(tied: bool, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, tied)
    before = [layer.weight.clone() for layer in matrices(load(folder, ()).model)]
    loaded = load(folder, tuple(f"<a_{index}>" for index in range(40)))
    assert len(before) == len(matrices(loaded.model)) == (1 if tied else 2)
    assert loaded.new_token_ids == list(range(290, 330))  # the first 30 take rows that no token had
    for old, layer in zip(before, matrices(loaded.model)):
        assert layer.weight.shape == (330, 32)
        assert torch.equal(layer.weight[:290], old[:290])
        new, mean, spread = layer.weight[290:], old[:290].mean(0), old[:290].std(0)
        # noise: .1 of the spread. A row lies within 5 * .1 of the mean, the mean of 40 rows within that / sqrt(40)
        assert ((new.mean(0) - mean).abs() < 0.08 * spread).all()
        assert ((new - mean).abs() < 0.5 * spread).all()
        assert len(new.unique(dim=0)) == 40


@either_head
def test_a_saved_model_keeps_its_rows_whatever_is_asked_for_again(tied: bool, tmp_path: Path) -> None:
    first = load(model_folder(tmp_path / "base", tied))
    first.model.save_pretrained(tmp_path / "sft")
    first.tokenizer.save_pretrained(tmp_path / "sft")
    again = load_causal_lm(CausalLMSettings(), path=tmp_path / "sft", new_tokens=SIDS, seed=1)
    assert again.new_token_ids == first.new_token_ids
    assert torch.equal(logits(again.model), logits(first.model))


@pytest.mark.parametrize("tokenizer_class", [PreTrainedTokenizerFast, Qwen2Tokenizer])
def test_text_gives_the_same_ids_after_every_stage(tokenizer_class: Any, tmp_path: Path) -> None:
    loaded = load(model_folder(tmp_path / "base", True, tokenizer_class))
    ids, mark = loaded.tokenizer(TEXT).input_ids, fingerprint(loaded.tokenizer)
    assert set(loaded.new_token_ids[1:3]) <= set(ids)
    for stage in ("sft", "grpo"):
        loaded.model.save_pretrained(tmp_path / stage)
        loaded.tokenizer.save_pretrained(tmp_path / stage)
        loaded = load_causal_lm(CausalLMSettings(), path=tmp_path / stage, new_tokens=SIDS)
        assert (loaded.tokenizer(TEXT).input_ids, fingerprint(loaded.tokenizer)) == (ids, mark)


def test_a_generic_tokenizer_is_what_its_file_says(tmp_path: Path) -> None:
    loaded = load(model_folder(tmp_path, True))
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "TokenizersBackend"
    assert loaded.tokenizer("caf\u00e9").input_ids == bpe().encode("caf\u00e9").ids
    assert loaded.tokenizer("cafe\u0301").input_ids == bpe().encode("cafe\u0301").ids
    assert loaded.tokenizer("cafe\u0301").input_ids != loaded.tokenizer("caf\u00e9").input_ids


# ---- what is trained


@either_head
def test_freeze_backbone_trains_the_new_rows_of_input_and_output_alone(tied: bool, tmp_path: Path) -> None:
    loaded = load(model_folder(tmp_path, tied), freeze_backbone=True)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    model = make_trainable(loaded, CausalLMSettings(freeze_backbone=True))
    train_a_step(model, loaded.new_token_ids)
    new = torch.zeros(320, dtype=torch.bool)
    new[loaded.new_token_ids] = True
    for name, value in model.state_dict().items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(value[~new], before[name][~new]), name
            assert (value[new] != before[name][new]).any(-1).all(), name
        else:
            assert torch.equal(value, before[name]), name


def test_freeze_backbone_without_new_tokens_is_refused(tmp_path: Path) -> None:
    loaded = load(model_folder(tmp_path, True), ())
    with pytest.raises(ModelError, match=r"model.freeze_backbone: the domain added no tokens"):
        make_trainable(loaded, CausalLMSettings(freeze_backbone=True))


@either_head
def test_lora_trains_the_new_rows_and_merges_into_the_same_logits(tied: bool, tmp_path: Path) -> None:
    loaded = load(model_folder(tmp_path / "base", tied))
    before = [layer.weight.clone() for layer in matrices(loaded.model)]
    start = logits(loaded.model).detach()
    settings = CausalLMSettings(adapter=AdapterSettings(rank=4))
    model = make_trainable(loaded, settings)
    torch.testing.assert_close(logits(model), start)  # an adapter begins as nothing
    train_a_step(model, loaded.new_token_ids)
    with_adapter = logits(model).detach()
    assert (with_adapter - start).abs().max() > 0.1
    plain = merged(model)
    torch.testing.assert_close(logits(plain), with_adapter, rtol=1e-4, atol=1e-4)
    for old, layer in zip(before, matrices(plain)):
        changed = (layer.weight != old).any(-1).nonzero()[:, 0].tolist()
        assert changed == loaded.new_token_ids
    plain.save_pretrained(tmp_path / "sft")
    loaded.tokenizer.save_pretrained(tmp_path / "sft")
    again = load_causal_lm(CausalLMSettings(), path=tmp_path / "sft", new_tokens=SIDS)
    torch.testing.assert_close(logits(again.model), with_adapter, rtol=1e-4, atol=1e-4)


# ---- what is no model


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match=r"^model.path: there is no folder '/no/such/model'; name the folder of a"):
        load(Path("/no/such/model"))


def test_a_hub_id_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(ModelError, match=r"^model.path: cannot load 'acme/none': .*; name a folder or hub id"):
        load(Path("acme/none"))


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"^model.path: no config.json in '.*'; name the folder of a Hugging Face model$"
    ):
        load(tmp_path)


def test_a_model_of_another_kind_is_refused_in_one_line(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match=r"cannot load .*Unrecognized configuration class.*T5Config.*causal lang"
    ) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, True)
    (folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ModelError, match=r"^model.path: cannot load '.*'"):
        load(folder)


def test_a_checkpoint_without_its_head_is_refused_and_not_filled_with_noise(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, False)
    Qwen2ForCausalLM.from_pretrained(folder).model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"lacks 1 of its weights, such as 'lm_head.weight'"):
        load(folder)
