"""The offline tokenizer, its chat template, and new tokens: text gives the same ids whatever happened in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import normalizers
from toys import tiny_model
from transformers import PreTrainedTokenizerBase

from rlkit.config.models import CausalLMSettings
from rlkit.models.load import load_causal_lm
from rlkit.models.tokenizer import byte_tokenizer, fingerprint

NEW = ("<a_0>", "<a_1>", "<b_0>")
TEXTS = ("plain", "<|user|>hi <a_1><b_0>", "caf\u00e9 caf\u0065\u0301 \u212b", "\u65e5\u672c\n\t\x00", "")
"""Among them a letter and its accent as one character and as two, which a normalizer would make equal."""


def ids(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the ids of every text."""
    return [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]


def test_any_text_survives_encoding_and_decoding() -> None:
    tokenizer = byte_tokenizer()
    assert [tokenizer.decode(row) for row in ids(tokenizer)] == list(TEXTS)
    assert tokenizer("\u00e9", add_special_tokens=False).input_ids == tokenizer.convert_tokens_to_ids(
        ["\u00c3", "\u00a9"]
    )
    assert len(tokenizer) == 256 + 6


def test_a_new_token_is_one_id_wherever_it_stands() -> None:
    tokenizer = tiny_model(NEW).tokenizer
    assert tokenizer("x<a_1><a_0>y", add_special_tokens=False).input_ids[1:3] == [263, 262]


def test_a_saved_model_is_loaded_with_the_same_tokenizer_again_and_again(tmp_path: Path) -> None:
    loaded = tiny_model(NEW)
    first, marks = ids(loaded.tokenizer), fingerprint(loaded.tokenizer)
    for stage in ("sft", "grpo"):
        loaded.model.save_pretrained(tmp_path / stage)
        loaded.tokenizer.save_pretrained(tmp_path / stage)
        loaded = load_causal_lm(CausalLMSettings(), path=tmp_path / stage, new_tokens=NEW)
        assert fingerprint(loaded.tokenizer) == marks
        assert ids(loaded.tokenizer) == first
        assert loaded.new_token_ids == [262, 263, 264]
        assert loaded.model.get_input_embeddings().weight.shape[0] == len(loaded.tokenizer) == 265


def test_the_fingerprint_changes_with_the_template_the_vocabulary_and_the_normalizer_alone() -> None:
    tokenizer = byte_tokenizer()
    seen = [fingerprint(tokenizer)]
    tokenizer(["a", "bc"], padding=True)
    assert fingerprint(tokenizer) == seen[0]
    tokenizer.chat_template = "{{ messages }}"
    seen.append(fingerprint(tokenizer))
    tokenizer.add_tokens(["<a_0>"])
    seen.append(fingerprint(tokenizer))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    seen.append(fingerprint(tokenizer))
    assert len(set(seen)) == 4


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_the_chat_template_puts_a_role_before_each_message_an_end_after_each_answer_and_nothing_between(
    system: str | None,
) -> None:
    tokenizer = byte_tokenizer()
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    messages += [{"role": "user", "content": "so?\n"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head = "<|system|>Be brief." if system else ""
    assert text == head + "<|user|>hi<|assistant|>yes<|end|><|user|>so?\n<|assistant|>"
