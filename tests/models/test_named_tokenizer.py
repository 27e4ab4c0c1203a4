"""``model.tokenizer``: another tokenizer than the model's own, loaded by its files and saved with the model."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import language_model_folder
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlkit.config.models import CausalLMSettings
from rlkit.errors import ModelError
from rlkit.models.load import load_causal_lm
from rlkit.models.tokenizer import byte_tokenizer, fingerprint

TEXT = "Write the code of the item"


def wide_model(folder: Path, rows: int) -> Path:
    """Write a model with so many rows and our byte tokenizer beside it."""
    config = Qwen2Config(
        vocab_size=rows, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_a_preset_is_made_for_the_tokenizer_that_is_named(tmp_path: Path) -> None:
    folder = language_model_folder(tmp_path)
    own, other = load_causal_lm(CausalLMSettings()), load_causal_lm(CausalLMSettings(tokenizer=str(folder)))
    assert len(own.tokenizer) == own.model.config.vocab_size == 262  # 256 bytes and six special tokens
    assert len(other.tokenizer) == other.model.config.vocab_size
    assert len(other.tokenizer) > 262
    assert other.model.config.eos_token_id == other.tokenizer.eos_token_id
    assert len(other.tokenizer(TEXT).input_ids) < len(own.tokenizer(TEXT).input_ids)  # merges, not bytes
    assert other.tokenizer.chat_template is not None


def test_a_checkpoint_is_read_with_the_tokenizer_that_is_named_and_ends_as_it_does(tmp_path: Path) -> None:
    tokenizer = language_model_folder(tmp_path / "bpe")
    model = wide_model(tmp_path / "model", 500)
    loaded = load_causal_lm(CausalLMSettings(path=str(model), tokenizer=str(tokenizer)))
    alone = load_causal_lm(CausalLMSettings(path=str(tokenizer)))
    assert fingerprint(loaded.tokenizer) == fingerprint(alone.tokenizer)
    assert fingerprint(loaded.tokenizer) != fingerprint(load_causal_lm(CausalLMSettings(path=str(model))).tokenizer)
    assert loaded.model.generation_config.eos_token_id == loaded.tokenizer.eos_token_id


def test_a_later_stage_has_the_tokenizer_that_was_saved_with_its_model(tmp_path: Path) -> None:
    settings = CausalLMSettings(tokenizer=str(language_model_folder(tmp_path / "bpe")))
    first = load_causal_lm(settings)
    first.model.save_pretrained(tmp_path / "sft")
    byte_tokenizer().save_pretrained(tmp_path / "sft")  # not the one that is named
    again = load_causal_lm(settings, path=tmp_path / "sft")
    assert len(again.tokenizer) == 262


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(tmp_path: Path) -> None:
    tokenizer, model = language_model_folder(tmp_path / "bpe"), wide_model(tmp_path / "model", 262)
    with pytest.raises(ModelError, match=r"^model.tokenizer: '.*bpe' has \d+ tokens, but the model has 262 rows; name"):
        load_causal_lm(CausalLMSettings(path=str(model), tokenizer=str(tokenizer)))


def test_a_pickle_is_refused_and_never_opened(tmp_path: Path) -> None:
    pickle = tmp_path / "tokenizer.pkl"
    pickle.write_bytes(b"cos\nsystem\n(S'touch unpickled'\ntR.")
    with pytest.raises(ModelError, match=r"^model.tokenizer: a file, got '.*tokenizer.pkl'; name the folder"):
        load_causal_lm(CausalLMSettings(tokenizer=str(pickle)))


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model.tokenizer: cannot load '.*': .*; name a folder or hub id$") as error:
        load_causal_lm(CausalLMSettings(tokenizer=str(tmp_path)))
    assert "\n" not in str(error.value)
