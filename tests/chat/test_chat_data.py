"""Reading chat files: kinds of files, splits by prompt, and every problem by file and line."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlkit.chat.data.read import ChatData, read_chat
from rlkit.chat.data.rows import prompt_key
from rlkit.config.chat import ChatFilesSettings, ChatSettings
from rlkit.errors import DataError

ROWS = [{"prompt": f"q{index}", "answer": f"a{index}"} for index in range(25)]
QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def write(path: Path, *lines: str) -> str:
    """Write lines and return the file's name."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def rows_file(path: Path, rows: list[Any]) -> str:
    """Write rows as JSONL."""
    return write(path, *(json.dumps(row) for row in rows))


def read(kind: str, path: str | Path, **settings: Any) -> ChatData:
    """Read one source; without ``valid`` the file itself is valid too, so that train has all rows."""
    settings = {"valid": str(path)} | settings
    return read_chat(ChatSettings(**{kind: ChatFilesSettings(path=str(path), **settings)}))


def asked(data: ChatData, split: str = "train") -> list[str]:
    """Return what the prompts of a split ask."""
    return [row.prompt[-1].content for row in data.splits[split]]


def problems(kind: str, path: str | Path, **settings: Any) -> list[str]:
    """Return the problems of reading one source, without the folder's name."""
    with pytest.raises(DataError) as error:
        read(kind, path, **settings)
    return [line.replace(f"{Path(path).parent}/", "") for line in error.value.problems]


# ---- kinds of files


def as_jsonl(path: Path) -> Path:
    """Write ``ROWS``."""
    return Path(rows_file(path / "rows.jsonl", ROWS))


def as_json(path: Path) -> Path:
    """Write ``ROWS`` as one list."""
    return Path(write(path / "rows.json", json.dumps(ROWS, indent=1)))


def as_csv(path: Path) -> Path:
    """Write ``ROWS`` as CSV."""
    with (path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "answer"])
        writer.writeheader()
        writer.writerows(ROWS)
    return path / "rows.csv"


def as_gzip(path: Path) -> Path:
    """Write ``ROWS`` as gzipped JSONL."""
    (path / "rows.jsonl.gz").write_bytes(gzip.compress(as_jsonl(path).read_bytes()))
    return path / "rows.jsonl.gz"


def as_parquet(path: Path) -> Path:
    """Write ``ROWS`` as Parquet."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path / "rows.parquet")
    return path / "rows.parquet"


def as_saved_dataset(path: Path) -> Path:
    """Write ``ROWS`` as ``datasets`` does."""
    import datasets

    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(path / "saved")
    return path / "saved"


def as_folder(path: Path) -> Path:
    """Write ``ROWS`` into two files of a folder."""
    (path / "folder" / "data").mkdir(parents=True)
    rows_file(path / "folder" / "data" / "train-00000-of-00002.jsonl", ROWS[:20])
    rows_file(path / "folder" / "data" / "train-00001-of-00002.jsonl", ROWS[20:])
    return path / "folder"


@pytest.mark.parametrize(
    "make",
    [as_jsonl, as_json, as_csv, as_gzip, as_parquet, as_saved_dataset, as_folder],
    ids=lambda make: make.__name__,
)
def test_every_kind_of_file_gives_the_same_rows(make: Callable[[Path], Path], tmp_path: Path) -> None:
    data = read("prompts", make(tmp_path))
    assert [(row.prompt[0].content, row.answer) for row in data.splits["train"]] == [
        (row["prompt"], row["answer"]) for row in ROWS
    ]
    assert {Path(file).exists() for file in data.files} == {True}


def test_rows_know_the_line_on_which_they_begin(tmp_path: Path) -> None:
    listed = write(tmp_path / "a.json", "[", '{"prompt":', '"x"}, {"prompt": "y"},', "", '{"prompt": "z"}]')
    quoted = write(tmp_path / "b.csv", "prompt,answer", '"two', 'lines",1', "", "x,2")
    lines = write(tmp_path / "c.txt", "first", "", "third")
    found = [[row.source.line for row in read("prompts", path).splits["train"]] for path in (listed, quoted, lines)]
    assert found == [[2, 3, 5], [2, 5], [1, 3]]


def test_a_line_separator_inside_a_text_does_not_end_the_row(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"prompt": "a\u2028b", "answer": "c"}')
    assert asked(read("prompts", path)) == ["a\u2028b"]


def test_a_saved_dataset_with_splits_keeps_them(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    parts = {"train": ROWS[:3], "validation": ROWS[3:5], "test": ROWS[5:6]}
    whole = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    whole.save_to_disk(tmp_path / "saved")
    data = read("prompts", tmp_path / "saved", valid=None)
    assert [asked(data, split) for split in ("train", "valid", "test")] == [["q0", "q1", "q2"], ["q3", "q4"], ["q5"]]


def test_what_a_table_fills_with_nothing_is_absent(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": None}]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (row,) = read("demonstrations", tmp_path / "rows.parquet").rows["demonstrations"]["train"]
    assert [(one.role, one.content, one.calls) for one in row.messages] == [("user", "a", ()), ("assistant", "b", ())]


# ---- splits


def test_a_share_of_the_prompts_is_valid_and_no_prompt_in_two_splits(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{index % 40}", "chosen": f"good {index}", "rejected": "bad"} for index in range(120)]
    data = read_chat(ChatSettings(preferences=rows_file(tmp_path / "pairs.jsonl", rows)))
    train, valid = ({prompt_key(row) for row in data.rows["preferences"][split]} for split in ("train", "valid"))
    assert train.isdisjoint(valid)
    assert len(train | valid) == 40
    # a tenth of 120 rows is 12: four prompts of three rows
    assert [len(data.rows["preferences"][split]) for split in ("train", "valid", "test")] == [108, 12, 12]
    assert len(data.splits["train"]) == 36, "each prompt once"


def test_the_split_depends_on_the_prompts_alone(tmp_path: Path) -> None:
    one = read_chat(ChatSettings(prompts=rows_file(tmp_path / "a.jsonl", ROWS)))
    other = read_chat(ChatSettings(prompts=rows_file(tmp_path / "b.jsonl", ROWS[::-1])))
    assert asked(one, "valid") == asked(other, "valid")[::-1]
    assert len(asked(one, "valid")) == 3  # a tenth of 25, rounded up
    most = ChatSettings(prompts=ChatFilesSettings(path=str(tmp_path / "a.jsonl"), valid_share=0.6))
    assert set(asked(one, "valid")) < set(asked(read_chat(most), "valid"))


def test_what_one_source_holds_back_no_other_trains_on(tmp_path: Path) -> None:
    pairs = [{"prompt": row["prompt"], "chosen": "a", "rejected": "b"} for row in ROWS[:10]]
    settings = ChatSettings(
        demonstrations=rows_file(tmp_path / "rows.jsonl", ROWS), preferences=rows_file(tmp_path / "pairs.jsonl", pairs)
    )
    rows = read_chat(settings).rows
    held = {prompt_key(row) for kind in rows for row in rows[kind]["valid"]}
    assert {prompt_key(row) for row in rows["preferences"]["valid"]}
    for kind in ("demonstrations", "preferences", "prompts"):
        assert held.isdisjoint(map(prompt_key, rows[kind]["train"]))
        assert len(rows[kind]["train"]) + len(rows[kind]["valid"]) == (10 if kind == "preferences" else 25)


def test_named_files_are_taken_whole_and_what_they_share_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, valid, test = (rows_file(tmp_path / f"{at}.jsonl", ROWS[at : at + 2]) for at in (0, 1, 5))
    data = read("prompts", train, valid=valid, test=test)
    assert [asked(data, split) for split in ("train", "valid", "test")] == [["q0", "q1"], ["q1", "q2"], ["q5", "q6"]]
    assert data.files == (train, valid, test)
    assert "domain.prompts: 1 prompts of valid are also in train" in caplog.text


# ---- what is derived


def test_prompts_come_from_demonstrations_and_demonstrations_from_answered_prompts(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "c"}, {"prompt": "p", "completion": "d"}])
    assert [(row.prompt[0].content, row.answer) for row in read("demonstrations", path).splits["train"]] == [
        ("q", "c"),
        ("p", "d"),
    ]
    path = rows_file(tmp_path / "b.jsonl", [{"prompt": "q", "answer": "c"}, {"prompt": "p"}])
    rows = read("prompts", path).rows
    assert [[one.content for one in row.messages] for row in rows["demonstrations"]["train"]] == [["q", "c"]]
    assert rows["preferences"]["train"] == ()


def test_other_keys_of_a_prompt_are_its_context(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "a.jsonl", [{"prompt": "q", "tests": ["x"], "level": 3}])
    assert read("prompts", path).splits["train"][0].context == {"tests": ["x"], "level": 3}


def test_without_any_source_there_is_the_demo(tmp_path: Path) -> None:
    data = read_chat(ChatSettings())
    assert {kind for kind in data.rows if not data.rows[kind]["train"] or not data.rows[kind]["valid"]} == {"steps"}
    assert data.files == ()


# ---- problems


def test_every_bad_row_of_every_file_is_named(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "fine"}',
        "{not json",
        '{"answer": "5"}',
        '{"prompt": "  ", "answer": "5"}',
        '{"prompt": 3, "answer": ["5"]}',
        '["a", "b"]',
        '{"prompt": "an empty answer is one", "answer": ""}',
    ]
    train, valid = write(tmp_path / "train.jsonl", *lines), write(tmp_path / "valid.jsonl", "7")
    found = problems("prompts", train, valid=valid)
    assert [line.partition(",")[0] for line in found] == [
        "train.jsonl:2: not valid JSON: expecting property name enclosed in double quotes: line 1 column 2 (char 1); "
        "write one object per line",
        "train.jsonl:3: prompt: missing",
        "train.jsonl:4: prompt: empty",
        "train.jsonl:5: prompt: not a text",
        "train.jsonl:5: answer: not a text",
        "train.jsonl:6: not an object",
        "valid.jsonl:1: no known format",
    ]
    assert all("; " in line for line in found), "each says what to do"


@pytest.mark.parametrize(
    ("kind", "row", "problem"),
    [
        ("preferences", {"prompt": "q", "chosen": "a"}, "rejected: missing, got the keys ['chosen', 'prompt']"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": " a "}, "chosen and rejected are the same, got 'a'"),
        ("preferences", {"chosen": "a", "rejected": "b"}, "prompt: missing"),
        ("preferences", {"prompt": "", "chosen": "a", "rejected": "b"}, "prompt: empty, got ''"),
        ("preferences", {"prompt": "q", "chosen": " ", "rejected": "b"}, "chosen: empty, got ' '"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": ""}, "rejected: empty, got ''"),
        ("preferences", {"question": "q", "response_j": "a", "response_k": ""}, "response_k: empty, got ''"),
        (
            "preferences",
            {"prompt": "q", "chosen": "a", "rejected": [ANSWER, {"role": "user", "content": "r"}]},
            "rejected: the last message is the user's",
        ),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": math.inf}, "margin: not a finite"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": math.nan}, "margin: not a finite"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "nan"}, "margin: not a finite"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "-inf"}, "margin: not a finite"),
        ("preferences", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 10**400}, "margin: not a finite"),
        ("demonstrations", {"prompt": "q", "completion": " "}, "completion: empty"),
        ("demonstrations", {"messages": [{"role": "user", "content": "q"}]}, "holds no message of the assistant"),
        ("demonstrations", {"messages": [{"role": "assistant", "content": "a"}]}, "the assistant speaks before the"),
        ("demonstrations", {"messages": [{"role": "boss", "content": "a"}]}, "messages[0]: unknown role, got 'boss'"),
        ("demonstrations", {"messages": []}, "messages: not a list of messages, got []"),
        ("demonstrations", {"instruction": "q", "output": "a", "history": 3}, "history: not a list of pairs, got 3"),
        ("demonstrations", {"prompt": "q", "completion": "a", "tools": [1]}, "tools: not a list of functions, got [1]"),
        ("demonstrations", {"prompt": "q", "completion": "a", "system": 3}, "system: content is not a text, got 3"),
        ("demonstrations", {"instruction": " ", "output": "a"}, "instruction: empty"),
        ("feedback", {"prompt": "q", "completion": "a", "label": "perhaps"}, "label: not true or false, got 'perhaps'"),
        ("feedback", {"messages": [{"role": "user", "content": "q"}], "label": True}, "the last message is the user's"),
        ("prompts", {"prompt": [{"role": "system", "content": "q"}]}, "prompt: holds no message of the user"),
        ("prompts", {"prompt": [QUESTION, ANSWER, {"role": "user", "content": " "}]}, "prompt: empty, got a message"),
        (
            "prompts",
            {"prompt": [QUESTION, ANSWER, {"role": "user", "content": ""}], "chosen": "a", "rejected": "b"},
            "prompt: empty, got a message of the user",
        ),
        ("demonstrations", {"messages": [QUESTION, ANSWER, {**QUESTION, "content": ""}, ANSWER]}, "prompt: empty, got"),
    ],
)
def test_rows_that_cannot_serve_are_refused_by_line(kind: str, row: Any, problem: str, tmp_path: Path) -> None:
    (found,) = problems(kind, write(tmp_path / "rows.jsonl", "", json.dumps(row)))
    assert found.startswith(f"rows.jsonl:2: {problem}")
    assert "; " in found


def test_a_file_that_lacks_a_key_in_every_row_is_one_line(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "pairs.jsonl", [{"prompt": f"q{at}", "chosen": "a"} for at in range(500)])
    (found,) = problems("preferences", path)
    assert found.startswith("pairs.jsonl:1: rejected: missing")
    assert found.endswith("(so in all 500 rows)")


def test_many_different_problems_do_not_flood_the_terminal(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "rows.jsonl", [{"prompt": "fine"}, *({"prompt": at} for at in range(500))])
    found = problems("prompts", path)
    assert len(found) == 21
    assert found[-1] == "rows.jsonl: and 480 more problems"


def test_rows_of_another_kind_are_named_as_what_they_are(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "rows.jsonl", ROWS)
    (found,) = problems("preferences", path)
    assert found.startswith("rows.jsonl: holds rows of the format prompts (key prompt), which give prompts or")
    assert "preferences need prompt, chosen and rejected" in found
    (found,) = problems("prompts", rows_file(tmp_path / "other.jsonl", [{"query": "a"}]))
    assert found.startswith("other.jsonl:1: no known format, got the keys ['query']; rename the keys to prompt")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("rows.jsonl", None, "cannot be read: no such file or directory"),
        ("rows.jsonl", b"\n\n", "holds no row"),
        ("rows.jsonl", b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
        ("rows.jsonl.gz", b"plain", "not a whole gzip file"),
        ("rows.parquet", b"plain", "not a parquet file"),
        ("rows.jsonl", b'{"prompt": "\\ud83d"}', "not valid JSON: half of a surrogate pair, got '\\ud83d'"),
        ("rows.json", b'[{"prompt": "a"}, {"prompt" "b"}]', "not valid JSON"),
        ("rows.csv", b"prompt,answer\na,b,c\n", "3 cells below 2 column names"),
    ],
)
def test_a_file_that_cannot_serve_is_an_error(tmp_path: Path, name: str, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert problem in "\n".join(problems("prompts", tmp_path / name))


def test_one_prompt_cannot_be_both_train_and_valid(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "rows.jsonl", [ROWS[0], ROWS[0]])
    with pytest.raises(DataError, match="one prompt cannot be both train and valid"):
        read_chat(ChatSettings(prompts=path))


def test_bad_rows_can_be_skipped_and_are_counted_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "rows.jsonl", '{"prompt": "a"}', "", "{bad", '{"prompt": ""}', '{"prompt": "b"}')
    with caplog.at_level(logging.INFO):
        data = read("prompts", path, on_bad_row="skip")
        read("prompts", path, on_bad_row="skip")
    assert asked(data) == ["a", "b"]
    report = data.reports[0]
    assert (report.rows, report.blank, report.bad_rows) == (2, 1, 2)
    (said,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith(path)]
    assert "format prompts (key prompt), 2 rows, 1 blank lines skipped, 2 bad rows skipped" in said
    assert f"{path}:4: prompt: empty" in said
    assert problems("prompts", write(tmp_path / "none.jsonl", "{bad"), on_bad_row="skip"), "nothing would be left"


def test_max_rows_reads_the_first_rows_of_each_file(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *(json.dumps(row) for row in ROWS[:3]), "{bad")
    data = read("prompts", path, max_rows=3)
    assert asked(data) == asked(data, "valid") == ["q0", "q1", "q2"]
    assert asked(read("prompts", as_json(tmp_path), max_rows=2)) == ["q0", "q1"]
    assert asked(read("prompts", as_csv(tmp_path), max_rows=2)) == ["q0", "q1"]
    assert asked(read("prompts", as_parquet(tmp_path), max_rows=2)) == ["q0", "q1"]


def test_checking_needs_no_torch(tmp_path: Path) -> None:
    train = rows_file(tmp_path / "train.jsonl", ROWS)
    code = (
        "import sys; from rlkit.config.chat import ChatSettings; "
        f"ChatSettings(prompts={train!r}).check(); print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "rlkit.chat.data.read" in modules  # the rows were read
    assert {"torch", "numpy", "pyarrow"}.isdisjoint(modules)
