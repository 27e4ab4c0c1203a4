"""The chat domain: prompts by the tokenizer's template, and what counts as a right answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import tiny_model

from rlkit.chat.answers import greedy_answers, is_exact
from rlkit.chat.domain import ChatDomain
from rlkit.chat.rewards import exact_match
from rlkit.config.algorithms import ValidateSettings
from rlkit.config.chat import ChatFilesSettings, ChatSettings
from rlkit.config.rewards import ExactMatchSettings
from rlkit.errors import DataError, ModelError
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


# ---- conversations, preferences and feedback


QWEN_LIKE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}"
    "{% if message.tool_calls %}CALLS{{ message.tool_calls[0].function.name }}{% endif %}{{ eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def domain_of(
    tmp_path: Path, kind: str, rows: list[dict], template: str | None = TEMPLATE, **settings: Any
) -> ChatDomain:
    """Return a bound domain of rows that are train and valid."""
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    files = ChatFilesSettings(path=str(tmp_path / "rows.jsonl"), valid=str(tmp_path / "rows.jsonl"))
    domain = ChatDomain(ChatSettings(**{kind: files}, **settings), seed=0)
    tokenizer = tiny_model().tokenizer
    tokenizer.chat_template = template
    domain.bind(tokenizer)
    return domain


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """Return messages."""
    return [{"role": role, "content": text} for role, text in turns]


TALK = messages(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))


def test_every_turn_is_rendered_once_and_ends_where_the_assistant_ends(tmp_path: Path) -> None:
    domain = domain_of(tmp_path, "demonstrations", [{"messages": TALK}], QWEN_LIKE)
    (row,) = domain.demonstrations("train")
    # the line end behind the end token is the template's, not the assistant's
    assert row.earlier == (("<|im_start|>user\nq<|end|>\n<|im_start|>assistant\n", "a<|end|>"),)
    assert row.prompt == "\n<|im_start|>user\nr<|end|>\n<|im_start|>assistant\n"
    assert row.completion == "b"
    whole = domain.tokenizer.apply_chat_template(TALK, tokenize=False)
    assert "".join([*row.earlier[0], row.prompt, row.completion]) + "<|end|>\n" == whole


def test_a_message_that_is_not_to_be_learned_is_context(tmp_path: Path) -> None:
    talk = [TALK[0], {**TALK[1], "weight": 0}, *TALK[2:]]
    (row,) = domain_of(tmp_path, "demonstrations", [{"messages": talk}]).demonstrations("train")
    assert row.earlier == ()
    assert row.prompt == "<|user|>q<|end|><|assistant|>a<|end|><|user|>r<|end|><|assistant|>"


def test_a_template_that_rewrites_earlier_turns_is_refused_by_line(tmp_path: Path) -> None:
    template = TEMPLATE.replace("message.content", "(message.content if loop.last else message.content | upper)")
    rows = [{"messages": TALK[:2]}, {"messages": TALK}]
    domain = domain_of(tmp_path, "demonstrations", rows, template)
    with pytest.raises(
        DataError, match=r"rows\.jsonl:1: the chat template writes a prompt differently once its answer"
    ):
        domain.demonstrations("train")


def test_a_conversation_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    template = "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}" + TEMPLATE
    domain = domain_of(tmp_path, "demonstrations", [{"messages": TALK[:2]}, {"messages": TALK}], template)
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: the chat template refuses this conversation: too long"
    ) as error:
        domain.demonstrations("train")
    assert len(error.value.problems) == 1


def test_without_a_template_the_built_in_one_ends_answers_with_the_tokenizers_end(tmp_path: Path) -> None:
    domain = domain_of(tmp_path, "demonstrations", [{"messages": TALK}], None)
    domain.tokenizer.eos_token = "<|pad|>"
    domain.tokenizer.chat_template = None
    domain.bind(domain.tokenizer)
    (row,) = domain.demonstrations("train")
    assert (row.earlier[0][1], row.completion) == ("a<|pad|>", "b")


def test_tools_and_calls_are_the_templates_or_json(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    row = {"messages": [TALK[0], call], "tools": [{"name": "look"}]}
    (knows,) = domain_of(tmp_path, "demonstrations", [row], QWEN_LIKE).demonstrations("train")
    assert knows.completion == "CALLSlook"
    (plain,) = domain_of(tmp_path, "demonstrations", [row], system="Be brief.").demonstrations("train")
    assert plain.prompt.startswith('<|system|>Be brief.\n\nTools:\n{"name": "look"}<|end|><|user|>q')
    assert plain.completion == '{"name": "look", "arguments": {}}'


def test_a_conversation_keeps_its_own_system_message(tmp_path: Path) -> None:
    rows = [{"messages": [*messages(("system", "Mine.")), *TALK[:2]]}, {"messages": TALK[:2]}]
    own, other = domain_of(tmp_path, "demonstrations", rows, system="Ours.").demonstrations("train")
    assert own.prompt.startswith("<|system|>Mine.<|end|><|user|>q")
    assert other.prompt.startswith("<|system|>Ours.<|end|><|user|>q")


def test_preferences_and_feedback_share_their_prompts_with_sampling(tmp_path: Path) -> None:
    pair = {"prompt": TALK[:3], "chosen": "b", "rejected": "c", "margin": 2}
    domain = domain_of(tmp_path, "preferences", [pair], QWEN_LIKE)
    (row,) = domain.preferences("valid")
    (prompt,) = domain.prompts("train")
    assert row.prompt == prompt.text == domain.tokenizer.apply_chat_template(
        TALK[:3], tokenize=False, add_generation_prompt=True
    )  # fmt: skip
    assert (row.chosen, row.rejected, row.margin, row.source.line) == ("b", "c", 2.0, 1)
    (liked,) = domain_of(tmp_path, "feedback", [{"messages": TALK, "label": False}], QWEN_LIKE).feedback("train")
    assert (liked.prompt, liked.completion, liked.desirable) == (prompt.text, "b", False)


def test_what_follows_a_shared_prompt_may_be_several_turns(tmp_path: Path) -> None:
    other = [TALK[0], *messages(("assistant", "x"))]
    (row,) = domain_of(tmp_path, "preferences", [{"chosen": TALK, "rejected": other}]).preferences("train")
    assert (row.prompt, row.rejected) == ("<|user|>q<|end|><|assistant|>", "x")
    assert row.chosen == "a<|end|><|user|>r<|end|><|assistant|>b"


def test_records_that_no_source_gives_are_asked_for(tmp_path: Path) -> None:
    domain = domain_of(tmp_path, "prompts", [{"prompt": "q"}])
    with pytest.raises(DataError, match=r"domain\.preferences: there are none; name a file of them"):
        domain.preferences("train")
    with pytest.raises(DataError, match=r"domain\.demonstrations: there are none, and no prompt carries an answer"):
        domain.demonstrations("train")


def test_inputs_change_with_any_file_of_a_folder(tmp_path: Path) -> None:
    for name in ("train-0", "train-1", "valid"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name, "answer": "a"}))
    hashes = []
    for text in ("b", "c"):
        (tmp_path / "train-1.jsonl").write_text(json.dumps({"prompt": "train-1", "answer": text}))
        hashes.append(ChatDomain(ChatSettings(prompts=str(tmp_path)), seed=0).inputs())
    assert len(hashes[0]) == 3
    assert [one == other for one, other in zip(*hashes)] == [True, False, True]
