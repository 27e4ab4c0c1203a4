"""Prompts become rows of ids, or are refused by the line that they come from."""

from __future__ import annotations

import pytest
import torch
from toys import tiny_model
from transformers import BloomConfig, BloomForCausalLM

from rlkit.chat.answers import greedy_answers
from rlkit.config.rollouts import SampleSettings
from rlkit.errors import DataError
from rlkit.policy.rollouts import generator_for
from rlkit.policy.sampler import RolloutRequest, SampleRollout, check_prompts, encode_prompts, prompt_limit
from rlkit.records import Prompt, Source


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(str(line), text, "a", Source("rows.jsonl", line)) for line, text in enumerate(texts, 1)]


def test_prompts_are_padded_on_the_left() -> None:
    tokenizer = tiny_model().tokenizer
    ids, mask = encode_prompts(tokenizer, prompts("abc", "d"), "cpu")
    a, b, c, d = tokenizer("abcd").input_ids
    pad = tokenizer.pad_token_id
    assert ids.tolist() == [[a, b, c], [pad, pad, d]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]


def test_prompts_without_a_token_or_with_too_many_are_all_named() -> None:
    with pytest.raises(DataError) as error:
        encode_prompts(tiny_model().tokenizer, prompts("abc", "", "abcd"), "cpu", limit=3)
    assert error.value.problems == (
        "rows.jsonl:2: prompt: no tokens, got ''; give it a text",
        "rows.jsonl:3: prompt: 4 tokens, but the model has room for 3 before its completion; "
        "shorten the prompt, or the completions",
    )


def test_all_prompts_are_checked_together_before_training_and_the_error_stays_readable() -> None:
    tokenizer = tiny_model().tokenizer
    check_prompts(tokenizer, prompts("abc", "d"), limit=3)
    check_prompts(tokenizer, prompts("a" * 99), limit=None)
    check_prompts(tokenizer, [], limit=3)
    with pytest.raises(DataError) as error:
        check_prompts(tokenizer, prompts("", "abc", *["abcd"] * 22), limit=3)
    assert len(error.value.problems) == 21
    assert error.value.problems[0] == "rows.jsonl:1: prompt: no tokens, got ''; give it a text"
    assert error.value.problems[1].startswith("rows.jsonl:3: prompt: 4 tokens, but the model has room for 3 before")
    assert error.value.problems[-1] == "prompts: 3 more like these"


def test_a_model_has_room_for_its_positions_less_the_completion() -> None:
    model = tiny_model().model
    model.config.max_position_embeddings = 12
    assert prompt_limit(model, 5) == 7
    without = BloomForCausalLM(BloomConfig(vocab_size=16, hidden_size=8, n_layer=1, n_head=1))
    assert prompt_limit(without, 5) is None


def test_rollouts_and_evaluation_refuse_a_prompt_that_leaves_no_room_for_the_completion() -> None:
    loaded = tiny_model()
    loaded.model.config.max_position_embeddings = 12
    settings = {"max_tokens": 5, "batch_size": 2, "device": "cpu"}
    assert len(greedy_answers(loaded.model.eval(), loaded.tokenizer, prompts("1234567"), **settings)) == 1
    with pytest.raises(DataError, match=r"^rows.jsonl:1: prompt: 8 tokens, but the model has room for 7 before"):
        greedy_answers(loaded.model, loaded.tokenizer, prompts("12345678"), **settings)
    rollout = SampleRollout(SampleSettings(max_completion_tokens=5))
    request = RolloutRequest(
        loaded.model,
        loaded.tokenizer,
        prompts("12345678"),
        2,
        None,
        "vocabulary",
        None,
        [generator_for(0)],
        torch.device("cpu"),
    )
    with pytest.raises(DataError, match="8 tokens"):
        rollout(request)
