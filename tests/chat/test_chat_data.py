"""Reading chat rows: splits, and every problem by file and line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlkit.chat.data import read_chat
from rlkit.config.domains import ChatSettings
from rlkit.errors import DataError


def write(path: Path, *lines: str) -> str:
    """Write lines and return the file's name."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def row(prompt: str, answer: str = "yes") -> str:
    """Return one line."""
    return json.dumps({"prompt": prompt, "answer": answer})


def test_without_valid_and_test_the_last_tenth_of_train_is_both(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", *(row(f"q{index}") for index in range(25)))
    data = read_chat(ChatSettings(train=train))
    # a tenth of 25, rounded up, is 3
    assert [len(data.splits[split]) for split in ("train", "valid", "test")] == [22, 3, 3]
    assert data.splits["valid"][0].prompt == "q22"
    assert data.splits["test"] == data.splits["valid"]
    assert data.files == (train,)


def test_named_files_are_taken_whole(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", row("a"), row("b"))
    valid = write(tmp_path / "valid.jsonl", row("c"))
    test = write(tmp_path / "test.jsonl", row("d"))
    data = read_chat(ChatSettings(train=train, valid=valid, test=test))
    assert [[one.prompt for one in data.splits[split]] for split in ("train", "valid", "test")] == [
        ["a", "b"],
        ["c"],
        ["d"],
    ]
    assert data.files == (train, valid, test)


def test_blank_lines_are_skipped_and_lines_still_count(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", row("a"), "", "  ", row("b\u2028c"), row("d"))
    data = read_chat(ChatSettings(train=train, valid=train))
    assert [(one.prompt, one.source.line) for one in data.splits["train"]] == [("a", 1), ("b\u2028c", 4), ("d", 5)]


def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text('{"prompt": "a\u2028b", "answer": "c"}\n', encoding="utf-8")
    assert read_chat(ChatSettings(train=str(train), valid=str(train))).splits["train"][0].prompt == "a\u2028b"


def test_every_bad_row_of_every_file_is_named(tmp_path: Path) -> None:
    train = write(
        tmp_path / "train.jsonl",
        row("fine"),
        "{not json",
        json.dumps({"answer": "5"}),
        json.dumps({"prompt": "  ", "answer": "5"}),
        json.dumps({"prompt": "a"}),
        json.dumps({"prompt": 3, "answer": ["5"]}),
        json.dumps(["a", "b"]),
        row("an empty answer is one", ""),
    )
    valid = write(tmp_path / "valid.jsonl", "7")
    with pytest.raises(DataError) as error:
        ChatSettings(train=train, valid=valid).check()
    starts = [problem.removeprefix(str(tmp_path) + "/")[:30] for problem in error.value.problems]
    assert [start.partition(",")[0] for start in starts] == [
        "train.jsonl:2: not valid JSON:",
        "train.jsonl:3: prompt: missing",
        "train.jsonl:4: prompt: empty",
        "train.jsonl:5: answer: missing",
        "train.jsonl:6: prompt: not a t",
        "train.jsonl:6: answer: not a t",
        "train.jsonl:7: not an object",
        "valid.jsonl:1: not an object",
    ]
    assert all("; " in problem for problem in error.value.problems), "each says what to do"


def test_a_file_of_another_kind_does_not_flood_the_terminal(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", *(json.dumps({"question": "a", "answer": "b"}) for _ in range(500)))
    with pytest.raises(DataError) as error:
        read_chat(ChatSettings(train=train))
    assert len(error.value.problems) == 21
    assert error.value.problems[-1] == f"{train}: and 480 more problems"
    assert "got the keys ['answer', 'question']" in error.value.problems[0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: no such file or directory"),
        (b"\n\n", "holds no row"),
        (b'{"prompt": "a", "answer": "b"}\n', "one row cannot be both train and valid"),
        (b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
    ],
)
def test_a_file_that_cannot_serve_is_an_error(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "train.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read_chat(ChatSettings(train=str(path)))


def test_checking_needs_no_torch(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", row("a"), row("b"))
    code = (
        "import sys; from rlkit.config.domains import ChatSettings; "
        f"ChatSettings(train={train!r}).check(); print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "rlkit.chat.data" in modules  # the rows were read
    assert {"torch", "numpy"}.isdisjoint(modules)
