"""Every format of chat data: how it is recognized, and what its rows say."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from toys import data_folder

from rlkit.chat.data.formats import FORMATS, detect
from rlkit.chat.data.kinds import as_kind
from rlkit.chat.data.messages import parse_dialogue
from rlkit.chat.data.read import read_chat, read_rows
from rlkit.chat.data.report import BadRow
from rlkit.chat.data.rows import KINDS, prompt_key
from rlkit.config.chat import ChatFilesSettings, ChatSettings
from rlkit.records import Source

HERE = Source("here", 1)
CALL = '{"name": "look", "arguments": {"at": "it"}}'
TALK = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
OTHER = ("assistant", "c")


def openai(*messages: tuple[str, str]) -> list[dict[str, str]]:
    """Return messages in OpenAI's form."""
    return [{"role": role, "content": text} for role, text in messages]


def sharegpt(*messages: tuple[str, str]) -> list[dict[str, str]]:
    """Return messages in ShareGPT's form."""
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names.get(role, role), "value": text} for role, text in messages]


def read(row: Any, kind: str) -> list[Any]:
    """Read one row as its detected format, as a kind."""
    found = detect([row])
    assert found is not None
    return [as_kind(one, kind) for one in FORMATS[found.format].parse(row, HERE)]


def said(messages: Any) -> list[tuple[str, str]]:
    """Return (role, text) of messages."""
    return [(one.role, one.text) for one in messages]


@pytest.mark.parametrize(
    ("row", "format", "messages"),
    [
        ({"messages": openai(*TALK)}, "messages", TALK),
        ({"messages": sharegpt(*TALK)}, "sharegpt", TALK),
        ({"conversations": sharegpt(*TALK)}, "sharegpt", TALK),
        ({"conversations": sharegpt(*TALK), "system": "S"}, "sharegpt", [("system", "S"), *TALK]),
        ({"conversation": openai(*TALK)}, "messages", TALK),
        ({"instruction": "q", "output": "a"}, "alpaca", TALK[:2]),
        ({"instruction": "q", "input": "more", "output": "a"}, "alpaca", [("user", "q\n\nmore"), TALK[1]]),
        (
            {"instruction": "r", "input": "", "output": "b", "system": "S", "history": [["q", "a"]]},
            "alpaca",
            [("system", "S"), *TALK],
        ),
        ({"prompt": "q", "completion": "a"}, "prompt_completion", TALK[:2]),
        ({"prompt": "q", "response": "a"}, "prompt_completion", TALK[:2]),
        ({"prompt": openai(*TALK[:3]), "completion": openai(TALK[3])}, "prompt_completion", TALK),
        ({"prompt": json.dumps(openai(*TALK[:3])), "completion": "b"}, "prompt_completion", TALK),  # a CSV cell
        ({"prompt": "q", "answer": "a"}, "prompts", TALK[:2]),
        ({"question": "q", "answer": "a"}, "prompts", TALK[:2]),
        ({"prompt": "\n\nHuman: q\n\nAssistant:", "answer": "a"}, "prompts", TALK[:2]),
        ({"messages": openai(*TALK, ("user", "bye"))}, "messages", TALK),  # nothing is learned after the last answer
    ],
)
def test_conversations(row: Any, format: str, messages: list[tuple[str, str]]) -> None:
    found = detect([row])
    assert found is not None
    assert found.format == format
    (dialogue,) = read(row, "demonstrations")
    assert said(dialogue.messages) == messages


def test_a_task_with_several_instances_is_several_conversations() -> None:
    row = {"instruction": "add", "instances": [{"input": "1 1", "output": "2"}, {"input": "", "output": "3"}]}
    assert [said(one.messages) for one in read(row, "demonstrations")] == [
        [("user", "add\n\n1 1"), ("assistant", "2")],
        [("user", "add"), ("assistant", "3")],
    ]


def test_tool_calls_are_calls_in_both_forms() -> None:
    tools = '[{"name": "look", "parameters": {}}]'
    calls = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "it"}'}}]
    theirs = {
        "conversations": [
            *sharegpt(("user", "q")),
            {"from": "function_call", "value": CALL},
            {"from": "observation", "value": "seen"},
        ],
        "tools": tools,
    }
    ours = {
        "messages": [
            *openai(("user", "q")),
            {"role": "assistant", "content": None, "tool_calls": calls},
            *openai(("tool", "seen")),
        ],
        "tools": tools,
    }
    for row in (theirs, ours):
        (dialogue,) = read(row, "demonstrations")
        assert said(dialogue.messages) == [("user", "q"), ("assistant", CALL)]
        assert dialogue.messages[1].content == ""
        assert dialogue.tools == ({"type": "function", "function": {"name": "look", "parameters": {}}},)


def test_messages_of_weight_zero_are_context() -> None:
    messages = openai(*TALK)
    messages[1]["weight"] = 0  # type: ignore[assignment]
    (dialogue,) = read({"messages": messages}, "demonstrations")
    assert [one.trained for one in dialogue.messages if one.role == "assistant"] == [False, True]


def test_content_in_parts_is_joined_and_images_are_refused() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    (dialogue,) = read(
        {"messages": [{"role": "user", "content": parts}, *openai(("assistant", "a"))]}, "demonstrations"
    )
    assert said(dialogue.messages)[0] == ("user", "one two")
    image = [{"type": "image_url", "image_url": "x"}]
    with pytest.raises(BadRow, match=r"messages\[0\]: content holds more than text"):
        read({"messages": [{"role": "user", "content": image}]}, "demonstrations")


@pytest.mark.parametrize(
    ("row", "prompt", "chosen", "rejected"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, TALK[:1], "a", "b"),
        ({"prompt": openai(*TALK[:3]), "chosen": openai(("assistant", "c")), "rejected": "d"}, TALK[:3], "c", "d"),
        # whole conversations: the prompt is what both begin with
        ({"chosen": openai(*TALK), "rejected": openai(*TALK[:3], ("assistant", "d"))}, TALK[:3], "b", "d"),
        ({"prompt": "q", "chosen": openai(*TALK[:2]), "rejected": openai(TALK[0], OTHER)}, TALK[:1], "a", "c"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, TALK[:1], "a", "b"),
        ({"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"}, TALK[:1], " a", " b"),
        (
            {"conversations": sharegpt(*TALK[:3]), "chosen": sharegpt(OTHER)[0], "rejected": sharegpt(TALK[3])[0]},
            TALK[:3],
            "c",
            "b",
        ),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, TALK[:1], "a", "b"),
        ({"question": "q", "response_j": "a", "response_k": "b"}, TALK[:1], "a", "b"),
    ],
)  # fmt: skip
def test_preferences(row: Any, prompt: Any, chosen: str, rejected: str) -> None:
    (pair,) = read(row, "preferences")
    assert (said(pair.prompt), said(pair.chosen), said(pair.rejected)) == (
        prompt,
        [("assistant", chosen)],
        [("assistant", rejected)],
    )


def test_conversations_that_part_before_their_end_keep_what_follows() -> None:
    other = openai(TALK[0], ("assistant", "x"), ("user", "y"), ("assistant", "z"))
    (pair,) = read({"chosen": openai(*TALK), "rejected": other}, "preferences")
    assert said(pair.prompt) == TALK[:1]
    assert (said(pair.chosen), len(pair.rejected)) == (TALK[1:], 3)
    # where the user's words differ, the answer before them belongs to both sides: a completion begins with an answer
    (pair,) = read({"chosen": openai(*TALK), "rejected": openai(*TALK[:2], *TALK[:2])}, "preferences")
    assert said(pair.prompt) == TALK[:1]
    with pytest.raises(BadRow, match="share no prompt"):
        read({"chosen": openai(*TALK), "rejected": openai(("user", "z"), TALK[1])}, "preferences")


def test_a_margin_is_a_number() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert [read({**row, "margin": one}, "preferences")[0].margin for one in (2, "1.5", None, "")] == [
        2,
        1.5,
        None,
        None,
    ]
    with pytest.raises(BadRow, match="margin: not a finite number, got 'much'"):
        read({**row, "margin": "much"}, "preferences")


JSON = ['{"name": 0}', "[0, 2]", "[]", "{}", '[{"role": "user", "content": "q"}, {"name": 0}]', '[["role", "from"]]']


@pytest.mark.parametrize("text", JSON)
def test_a_text_that_is_json_but_no_message_stays_a_text(text: str) -> None:
    (dialogue,) = read({"prompt": text, "completion": text}, "demonstrations")
    assert said(dialogue.messages) == [("user", text), ("assistant", text)]
    (pair,) = read({"prompt": text, "chosen": text, "rejected": "b"}, "preferences")
    assert (said(pair.prompt), said(pair.chosen)) == ([("user", text)], [("assistant", text)])


@pytest.mark.parametrize("form", [openai, sharegpt])
def test_a_text_that_holds_messages_as_json_is_these_messages(form: Any) -> None:
    (pair,) = read(
        {"prompt": json.dumps(form(*TALK[:3])), "chosen": json.dumps(form(TALK[3])[0]), "rejected": "c"}, "preferences"
    )
    assert (said(pair.prompt), said(pair.chosen)) == (TALK[:3], TALK[3:])
    (question,) = read({"prompt": json.dumps(form(TALK[0])[0])}, "prompts")
    assert said(question.prompt) == TALK[:1]


@pytest.mark.parametrize(
    ("row", "desirable"),
    [
        ({"messages": openai(*TALK), "label": True}, True),
        ({"conversations": sharegpt(*TALK), "kto_tag": "false"}, False),
        ({"prompt": openai(*TALK[:3]), "completion": "b", "label": 0}, False),
        ({"prompt": openai(*TALK[:3]), "completion": openai(TALK[3]), "label": "1"}, True),
    ],
)
def test_feedback(row: Any, desirable: bool) -> None:
    (rated,) = read(row, "feedback")
    assert (said(rated.prompt), said(rated.completion), rated.desirable) == (TALK[:3], TALK[3:], desirable)


def test_prompts_from_turns_keep_the_others_as_context() -> None:
    (one,) = read({"turns": ["q", "r"], "category": "x"}, "prompts")
    assert (said(one.prompt), one.answer, one.context) == (TALK[:1], "", {"turns": ["q", "r"], "category": "x"})
    (one,) = read({"turns": ["q"], "category": "x"}, "prompts")
    assert one.context == {"category": "x"}


def test_turns_of_one_side_that_follow_each_other_are_one_message() -> None:
    text = "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nd\n\nAssistant: e"
    assert said(parse_dialogue(text, "chosen")) == [("user", "a\n\nb"), ("assistant", "c\n\nd\n\ne")]


def test_detection_says_by_which_keys() -> None:
    rows = {
        "key conversations with from, value": {"conversations": sharegpt(*TALK)},
        "keys messages, label": {"messages": openai(*TALK), "label": True},
        "keys instruction, output": {"instruction": "q", "output": "a", "input": ""},
        "key prompt": {"prompt": "q"},
        "plain lines": "q",
    }
    assert {found.reason for row in rows.values() if (found := detect([row]))} == set(rows)
    assert detect([{"something": "else"}]) is None


def test_a_named_format_wins_over_detection(tmp_path: Path) -> None:
    row = {"messages": openai(*TALK), "chosen": "a", "rejected": "b"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row).replace('"q"', '"p"'))
    path = str(tmp_path / "rows.jsonl")
    settings = ChatSettings(demonstrations=ChatFilesSettings(path=path, format="messages"))
    assert len(read_chat(settings).rows["demonstrations"]["train"]) == 1
    assert detect([row]).format == "preference"  # type: ignore[union-attr]


REAL = [
    ("preference_chat", "hh_harmless_visible.jsonl.gz", "preferences", 1188),
    ("preference_chat", "alpaca_eval_gpt4_pairs_visible.jsonl", "preferences", 1164),
    ("preference_chat", "dpo_en_demo.json", "preferences", 300),
    ("preference_chat", "dpo_zh_demo.json", "preferences", 300),
    ("preference_chat", "kto_en_demo.json", "feedback", 300),
    ("preference_chat", "stack_exchange_paired_tiny.json", "preferences", 25),
    ("preference_chat", "hh_rlhf_tiny.json", "preferences", 1),
    ("sft_chat", "alpaca_en_demo.json", "demonstrations", 999),
    ("sft_chat", "alpaca_zh_demo.json", "demonstrations", 1000),
    ("sft_chat", "glaive_toolcall_en_demo.json", "demonstrations", 300),
    ("sft_chat", "seed_tasks.jsonl", "demonstrations", 175),
    ("sft_chat", "vicuna_bench_question.jsonl", "prompts", 46),
]


@pytest.mark.parametrize(("folder", "name", "kind", "count"), REAL, ids=[name for _, name, *_ in REAL])
def test_every_real_file_loads_whole(folder: str, name: str, kind: str, count: int) -> None:
    path = str(data_folder(folder) / name)
    rows, (report,) = read_rows(ChatFilesSettings(path=path), kind)
    assert (len(rows["train"]), report.bad) == (count, [])
    assert {type(row).__name__ for row in rows["train"]} == {_CLASSES[kind]}


_CLASSES = dict(zip(KINDS, ("Dialogue", "Pair", "Rated", "Stepwise", "Question")))


def test_every_real_file_is_listed() -> None:
    for folder in ("preference_chat", "sft_chat"):
        names = {path.name for path in data_folder(folder).iterdir() if path.name != "README.md"}
        assert names == {name for where, name, *_ in REAL if where == folder}


def test_a_long_list_is_read_in_time_that_grows_with_it(tmp_path: Path) -> None:
    rows = [{"instruction": f"{number} " + "a" * 200, "output": "b"} for number in range(5_000)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    started = time.perf_counter()
    found, _ = read_rows(ChatFilesSettings(path=str(tmp_path / "rows.json")), "demonstrations")
    assert len(found["train"]) == 5_000
    assert time.perf_counter() - started < 4, "15 s where every entry looks through the whole text"


def test_feedback_keeps_its_labels_and_pairs_their_prompts() -> None:
    path = str(data_folder("preference_chat") / "kto_en_demo.json")
    rows, _ = read_rows(ChatFilesSettings(path=path), "feedback")
    assert sum(row.desirable for row in rows["train"]) == 150
    path = str(data_folder("preference_chat") / "alpaca_eval_gpt4_pairs_visible.jsonl")
    data = read_chat(ChatSettings(preferences=path))
    train, valid = ({prompt_key(row) for row in data.rows["preferences"][split]} for split in ("train", "valid"))
    assert train.isdisjoint(valid)
    assert len(train | valid) == 393  # prompts of the README
