"""The chat domain: prompts by the tokenizer's template, and what counts as a right answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toys import tiny_model

from rlkit.chat.answers import greedy_answers, is_exact
from rlkit.chat.domain import ChatDomain
from rlkit.chat.rewards import exact_match
from rlkit.config.algorithms import ValidateSettings
from rlkit.config.chat import ChatFilesSettings, ChatSettings
from rlkit.config.rewards import ExactMatchSettings
from rlkit.errors import ModelError
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.sampler import encode_prompts
from rlkit.policy.text_rewards import Answer, decode

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def domain(tmp_path: Path) -> ChatDomain:
    """Return a bound domain of twenty sums."""
    rows = [json.dumps({"prompt": f"{index} + 1?", "answer": str(index + 1)}) for index in range(20)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows[:18]))
    (tmp_path / "valid.jsonl").write_text("\n".join(rows[18:]))
    files = ChatFilesSettings(path=str(tmp_path / "train.jsonl"), valid=str(tmp_path / "valid.jsonl"))
    domain = ChatDomain(ChatSettings(prompts=files, max_completion_tokens=4), seed=0)
    tokenizer = tiny_model().tokenizer
    tokenizer.chat_template = TEMPLATE
    domain.bind(tokenizer)
    return domain


def rollouts_of(domain: ChatDomain, texts: list[list[str]], ended: bool = True) -> Rollouts:
    """Return groups of given completions for the first train prompts; an empty text stands for an absent one."""
    prompts = domain.prompts("train")[: len(texts)]
    end = [domain.tokenizer.eos_token_id] if ended else []
    rows = [[domain.tokenizer(text).input_ids + end if text else [] for text in group] for group in texts]
    width = max(len(row) for group in rows for row in group)
    completions = torch.tensor([[row + [0] * (width - len(row)) for row in group] for group in rows])
    lengths = torch.tensor([[len(row) for row in group] for group in rows])
    batch = GroupBatch(
        *encode_prompts(domain.tokenizer, prompts, "cpu"), completions, torch.arange(width) < lengths[..., None]
    )
    size = lengths.shape
    truncated = torch.full(size, not ended) & (lengths > 0)
    nothing = torch.zeros(len(texts), 1, dtype=torch.long)
    return Rollouts(prompts, batch, torch.zeros(size), None, truncated, nothing, nothing.bool())


def test_a_prompt_is_the_template_up_to_where_the_answer_begins(domain: ChatDomain) -> None:
    prompt = domain.prompts("train")[3]
    assert prompt.text == "<|user|>3 + 1?<|end|><|assistant|>"
    assert (prompt.answer, prompt.key, prompt.source.line) == ("4", "train-3", 4)
    assert "4" not in prompt.text


def test_a_prompt_is_tokenized_as_the_template_itself_would(domain: ChatDomain) -> None:
    prompt = domain.prompts("train")[3]
    ids, mask = encode_prompts(domain.tokenizer, [prompt], "cpu")
    messages = [{"role": "user", "content": "3 + 1?"}]
    whole = domain.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert ids[0].tolist() == (whole["input_ids"] if hasattr(whole, "keys") else whole)
    assert mask.all()


def test_the_system_message_comes_first(domain: ChatDomain) -> None:
    settings = domain.settings.model_copy(update={"system": "Be brief."})
    other = ChatDomain(settings, seed=0)
    other.bind(domain.tokenizer)
    assert other.prompts("train")[0].text == "<|system|>Be brief.<|end|><|user|>0 + 1?<|end|><|assistant|>"


def test_demonstrations_are_prompts_with_their_answers(domain: ChatDomain) -> None:
    shown = domain.demonstrations("valid")
    assert [one.prompt for one in shown] == [one.text for one in domain.prompts("valid")]
    assert [one.completion for one in shown] == ["19", "20"]


def test_a_sample_of_prompts_is_the_same_every_time_and_in_order(domain: ChatDomain) -> None:
    keys = [prompt.key for prompt in domain.prompts("train", 5)]
    assert keys == [prompt.key for prompt in domain.prompts("train", 5)]
    lines = [prompt.source.line for prompt in domain.prompts("train", 5)]
    assert lines == sorted(set(lines))
    assert len(domain.prompts("train", 500)) == 18


def test_a_template_that_refuses_the_messages_is_named(domain: ChatDomain) -> None:
    domain.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ModelError, match="chat template refuses the messages: no system role"):
        domain.bind(domain.tokenizer)


def test_a_tokenizer_without_an_end_token_is_refused(domain: ChatDomain) -> None:
    domain.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        domain.bind(domain.tokenizer)


def test_the_reward_is_one_for_the_answer_alone(domain: ChatDomain) -> None:
    reward = exact_match(ExactMatchSettings(), domain)
    # prompts "0 + 1?" and "1 + 1?", answers "1" and "2"; the last completion of the second group is absent
    scores = reward(rollouts_of(domain, [["1", " 1\n", "2"], ["2", "2 ", ""]]))
    assert scores.tolist() == [[1, 1, 0], [1, 1, 0]]
    assert reward(rollouts_of(domain, [["1", "12", "01"]])).tolist() == [[1, 0, 0]]


def test_a_special_token_in_a_completion_is_not_nothing(domain: ChatDomain) -> None:
    assert exact_match(ExactMatchSettings(), domain)(rollouts_of(domain, [["<|user|>1", "1"]])).tolist() == [[0, 1]]


def test_a_completion_that_was_cut_off_is_wrong(domain: ChatDomain) -> None:
    assert exact_match(ExactMatchSettings(), domain)(rollouts_of(domain, [["1", "1"]], ended=False)).tolist() == [
        [0, 0]
    ]
    assert not is_exact(Answer("1", True, 1), "1")


def test_decoding_leaves_out_the_end_and_the_padding(domain: ChatDomain) -> None:
    encode = domain.tokenizer
    tokens = torch.tensor([[*encode("hé").input_ids, encode.eos_token_id, 0], [*encode("abcde").input_ids]])
    mask = torch.tensor([[True] * 4 + [False], [True] * 5])
    answers = decode(encode, tokens, mask, torch.tensor([False, True]))
    assert answers == [Answer("hé", False, 4), Answer("abcde", True, 5)]


def test_validation_asks_the_greedy_answer_of_each_prompt(domain: ChatDomain) -> None:
    loaded = tiny_model()
    prompts = domain.prompts("train")[:3]
    said = greedy_answers(loaded.model.eval(), loaded.tokenizer, prompts, max_tokens=4, batch_size=2, device="cpu")
    assert all(answer.tokens <= 4 for answer in said)
    found = domain.validate(loaded.model, loaded.tokenizer, prompts, ValidateSettings(), "cpu")
    assert found["exact_match"].tolist() == [0, 0, 0]
    assert domain.validate(loaded.model, loaded.tokenizer, [], ValidateSettings(), "cpu")["exact_match"].shape == (0,)
