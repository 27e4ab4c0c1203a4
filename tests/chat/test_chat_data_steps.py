"""Labeled steps: rows of files by line, generated arithmetic, and the records that come of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlkit.chat.data.demo import generate_demo
from rlkit.chat.data.formats import detect
from rlkit.chat.data.read import kind_of, read_chat
from rlkit.chat.domain import ChatDomain
from rlkit.chat.preview import as_text, pieces
from rlkit.chat.render import Renderer
from rlkit.config.arithmetic import ArithmeticSettings
from rlkit.config.chat import ChatDemoSettings, ChatSettings
from rlkit.errors import DataError
from rlkit.models.tokenizer import byte_tokenizer
from rlkit.records import StepLabels

ROWS = [
    {"prompt": f"{n} + 1 + 1", "completions": [f"{n} + 1 = {n + 1}", "then 9"], "labels": [True, False]}
    for n in range(20)
]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def domain(**settings: object) -> ChatDomain:
    made = ChatDomain(ChatSettings(**settings), seed=0)
    made.bind(byte_tokenizer())
    return made


def test_steps_are_read_with_their_labels_and_their_prompts_rendered(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *ROWS)
    assert detect(ROWS).format == "stepwise"  # type: ignore[union-attr]
    assert kind_of(path) == "steps"
    made = domain(steps=str(path))
    rows = made.step_labels("train")
    first = rows[0]
    number = int(first.steps[0].split()[0])
    prompt = f"<|user|>{number} + 1 + 1<|assistant|>"
    assert first == StepLabels(prompt, (f"{number} + 1 = {number + 1}", "then 9"), (1.0, 0.0), first.source)
    assert first.source.path == str(path)
    assert not {row.prompt for row in rows} & {row.prompt for row in made.step_labels("valid")}
    assert made.settings.records() == ("Prompt", "StepLabels")
    assert {row.text for row in made.prompts("train")} == {row.prompt for row in rows}


def test_labels_may_be_numbers_and_cells_may_hold_json(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "completions": '["x", "y", "z"]', "labels": "[0.25, 1, 0]"},
        {"prompt": [{"role": "user", "content": "b"}], "completions": ["x"], "labels": ["true"]},
    ]
    data = read_chat(ChatSettings(steps=str(write(tmp_path / "r.jsonl", *rows))))
    found = {row.prompt[0].content: row.labels for split in ("train", "valid") for row in data.rows["steps"][split]}
    assert found == {"a": (0.25, 1.0, 0.0), "b": (1.0,)}


def test_every_bad_row_is_named_by_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        ROWS[0],
        {"prompt": "p", "completions": ["x", "y"], "labels": [True]},
        {"prompt": "p", "completions": ["x", " "], "labels": [True, "maybe"]},
        {"prompt": "p", "completions": "x", "labels": [True]},
        {"prompt": " ", "completions": ["x"], "labels": [-1]},
        {"completions": ["x"], "labels": [1.5]},
        {"prompt": "p", "completions": ["x"]},
    )
    with pytest.raises(DataError) as error:
        read_chat(ChatSettings(steps=str(path)))
    found = [problem.removeprefix(f"{path}:") for problem in error.value.problems]
    assert [(problem.split(": ")[0], problem.split(": ")[1]) for problem in found] == [
        ("2", "labels"),
        ("3", "completions[1]"),
        ("3", "labels[1]"),
        ("4", "completions"),
        ("5", "labels[0]"),
        ("5", "prompt"),
        ("6", "labels[0]"),
        ("6", "prompt"),
        ("7", "labels"),
    ]
    assert found[0] == (
        "2: labels: one for each step is needed, got 1 for 2 completions; write true or false for each step"
    )
    assert "PRM800K's -1, 0, 1 as 0, 1, 1" in found[4]


def test_generated_steps_go_on_from_what_was_said_and_are_labeled_rightly() -> None:
    levels = [{"digits": 2, "terms": 4, "operations": ["+", "-"]}]
    source = {"type": "arithmetic", "wrong": 0.4, "rows": 3000, "held_out": 50, "levels": levels}
    data = read_chat(ChatSettings(steps=ArithmeticSettings.model_validate(source)))
    rows = data.rows["steps"]["train"]
    assert len(rows) == 3000
    for row in rows:
        said = row.prompt[0].content.split()[0]
        for step, label in zip(row.steps, row.labels):
            first, sign, second, _, result = step.split()
            assert first == said
            right = int(first) + int(second) if sign == "+" else int(first) - int(second)
            assert (int(result) == right) == bool(label)
            said = result
    share = sum(sum(row.labels) for row in rows) / sum(len(row.labels) for row in rows)
    assert 0.57 < share < 0.63
    assert {len(row.steps) for row in rows} == {3}


def test_sources_without_steps_say_so() -> None:
    with pytest.raises(DataError, match="chat_demo: holds no steps; take type: arithmetic"):
        generate_demo(ChatDemoSettings(), "steps")
    with pytest.raises(DataError, match="steps are made of sums only"):
        read_chat(ChatSettings(steps=ArithmeticSettings.model_validate({"levels": [{"operations": ["*"]}]})))
    with pytest.raises(DataError, match=r"domain\.steps: there are none"):
        domain().step_labels("train")


def test_a_preview_shows_right_and_wrong_steps(tmp_path: Path) -> None:
    rows = read_chat(ChatSettings(steps=str(write(tmp_path / "rows.jsonl", *ROWS)))).rows["steps"]["train"]
    shown = as_text(pieces("steps", rows[0], Renderer(byte_tokenizer(), None)), colors=False).plain
    assert shown.endswith("{+" + rows[0].steps[0] + "+}\n[-then 9-]")
