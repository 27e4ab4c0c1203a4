"""``rlkit data preview``: what a file was taken for, its bad rows, and what of it is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toys import tiny_model

from rlkit.chat.data.read import read_rows
from rlkit.chat.preview import as_text, pieces
from rlkit.chat.render import Renderer
from rlkit.cli.main import main
from rlkit.config.chat import ChatFilesSettings


def preview(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the verb; return its exit code and what it said."""
    import sys

    before, sys.argv = sys.argv, ["rlkit", "data", "preview", *arguments]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_file_is_shown_with_its_format_counts_and_trained_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hey"}]
    lines = [json.dumps({"messages": [*talk, *talk]}), "", json.dumps({"messages": talk[:1]})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    code, out, _ = preview(capsys, str(tmp_path / "rows.jsonl"))
    assert code == 0
    row = next(line for line in out.splitlines() if " messages " in line)
    assert row.split() == [
        *(str(tmp_path / "rows.jsonl"), "train", "messages", "key", "messages", "with", "content,", "role"),
        *("1", "1", "1"),  # rows, blank lines, bad rows
    ]
    assert "rows.jsonl:3: holds no message of the assistant" in out
    assert "<|user|>hi<|assistant|>{+hey<|end|>+}<|user|>hi<|assistant|>{+hey<|end|>+}" in out
    # twice user h i assistant, twice h e y end
    assert "1 train rows; prompt tokens: median 8, 95 % 8, longest 8; answer tokens: median 8" in out


def test_a_recipe_shows_all_its_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text("name: x\ndomain: {type: chat}\nstages: {sft: {algorithm: {type: sft}}}\n")
    code, out, _ = preview(capsys, str(tmp_path / "r.yaml"), "-n", "1")
    assert code == 0
    assert [line for line in out.splitlines() if line in ("demonstrations", "preferences", "feedback", "prompts")] == [
        "demonstrations",
        "preferences",
        "feedback",
        "prompts",
    ]
    assert "{+chosen+}  [-rejected-]" in out
    assert out.count(":1\n") == 4
    assert ":2\n" not in out


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"query": "a"}', "rows.jsonl:1: no known format, got the keys ['query']"),
        ("{bad", "rows.jsonl:1: not valid JSON"),
        (None, "rows.jsonl: cannot be read: no such file or directory"),
    ],
)
def test_a_file_that_no_format_fits_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content)
    code, _, err = preview(capsys, str(tmp_path / "rows.jsonl"))
    assert code == 2
    assert problem in err


def test_colors_stand_where_marks_would(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "q", "chosen": "[a]", "rejected": "b"}))
    rows, _ = read_rows(ChatFilesSettings(path=str(tmp_path / "rows.jsonl")), "preferences")
    found = pieces("preferences", rows["train"][0], Renderer(tiny_model().tokenizer, None))
    text = as_text(found, colors=True)
    assert text.plain == "<|user|>q<|assistant|>[a]<|end|>\nb<|end|>"
    colored = {str(span.style): text.plain[span.start : span.end] for span in text.spans if span.style}
    assert colored == {"green": "[a]<|end|>", "red": "b<|end|>"}
