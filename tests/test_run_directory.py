"""A run directory: files that are whole or absent, a manifest that refuses other inputs, logs that fit the steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlkit.errors import RunError
from rlkit.run_directory import RunDirectory, content_hash, write_atomically


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    """Return an opened run directory with one finished stage."""
    made = RunDirectory(tmp_path / "run")
    made.open("name: x\n", 7, {"acme-nudge": "1.2.3"})
    made.finish("sft", "inputs-1", {"policy": {"hash": "abc"}}, 61.234)
    return made


def write_lines(directory: RunDirectory, name: str, *lines: str) -> Path:
    path = directory.path / name
    path.write_text("".join(lines), encoding="utf-8")
    return path


def line(stage: str, step: int, **values: object) -> str:
    return json.dumps({"stage": stage, "step": step, **values}) + "\n"


# ---- files


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old, and longer")
    write_atomically(path, "n\u00e9w")
    assert path.read_text(encoding="utf-8") == "n\u00e9w"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):  # half a character cannot be written: the write ends in its middle
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"


def test_a_hash_depends_on_values_their_order_and_the_bytes_of_files(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    first = content_hash({"a": 1, "b": [2]}, path)
    assert first == content_hash({"b": [2], "a": 1}, path)
    assert len(first) == 16
    path.write_bytes(b"2")
    others = {content_hash({"a": 1, "b": [2]}, path), content_hash(path, {"a": 1, "b": [2]}), content_hash("a", "b")}
    assert len({first, content_hash("ab"), *others}) == 5


def test_an_opened_directory_holds_the_recipe_and_what_the_run_is_made_with(directory: RunDirectory) -> None:
    assert (directory.path / "recipe.yaml").read_text() == "name: x\n"
    environment = json.loads((directory.path / "environment.json").read_text())
    assert (environment["seed"], environment["plugins"]) == (7, {"acme-nudge": "1.2.3"})
    assert {"rlkit", "torch", "transformers", "trl"} <= set(environment["versions"])
    assert (directory.path / "logs").is_dir()


# ---- the manifest


def test_a_stage_is_finished_for_the_inputs_that_it_was_made_with(directory: RunDirectory) -> None:
    assert directory.finished("sft", "inputs-1")
    assert not directory.finished("grpo", "inputs-1")
    assert directory.artefact("sft", "policy") == {"hash": "abc"}
    assert directory.artefact("sft", "evaluation") is None
    assert directory.artefact("grpo", "policy") is None
    assert directory.manifest()["stages"]["sft"]["seconds"] == 61.2


def test_other_inputs_are_refused_by_the_name_of_the_stage(directory: RunDirectory) -> None:
    message = r"run: stage 'sft' was made with other settings or data; redo it with --from sft, start over with --fresh"
    with pytest.raises(RunError, match=message):
        directory.finished("sft", "inputs-2")


def test_a_stage_that_was_interrupted_goes_on_for_the_inputs_that_it_was_begun_with_alone(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.begin("grpo", "inputs-1")
    (directory.stage("grpo") / "leftover").touch()
    assert not directory.finished("grpo", "inputs-2"), "without a checkpoint there is nothing to lose"
    directory.begin("grpo", "inputs-2")
    assert not (directory.stage("grpo") / "leftover").exists()
    (directory.stage("grpo") / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    assert not directory.finished("grpo", "inputs-2")
    with pytest.raises(RunError, match="stage 'grpo' was made with other settings or data; redo it with --from grpo"):
        directory.finished("grpo", "inputs-3")


@pytest.mark.parametrize("text", ["", '{"stages": {', "not json"])
def test_a_damaged_manifest_is_named_and_not_taken_for_a_new_run(text: str, directory: RunDirectory) -> None:
    directory.manifest_path.write_text(text)
    with pytest.raises(RunError, match=r"manifest.json: not valid JSON: .*; use --fresh to start over"):
        directory.finished("sft", "inputs-1")


def test_a_new_directory_has_no_finished_stage(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path / "none").manifest() == {"stages": {}}


def test_a_removed_stage_leaves_neither_files_nor_lines_nor_an_entry(directory: RunDirectory) -> None:
    directory.finish("grpo", "inputs-3", {}, 1.0)
    for stage in ("sft", "grpo"):
        (directory.stage(stage) / "model").mkdir(parents=True)
    path = write_lines(directory, "metrics.jsonl", line("sft", 1), line("grpo", 1))
    directory.remove("grpo")
    assert list(directory.manifest()["stages"]) == ["sft"]
    assert (directory.stage("sft") / "model").is_dir()
    assert not directory.stage("grpo").exists()
    assert path.read_text() == line("sft", 1)
    directory.remove("never_made")
    assert list(directory.manifest()["stages"]) == ["sft"]


# ---- logs


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "alarms.jsonl", "quarantine.jsonl"])
def test_lines_of_the_stage_from_a_step_on_are_dropped_and_all_others_stay(name: str, directory: RunDirectory) -> None:
    rows = [line("sft", 9), line("grpo", 2, text="\u2028"), line("grpo", 4), line("grpo", 5), line("evaluate", 5)]
    path = write_lines(directory, name, *rows)
    directory.keep_lines("grpo", before_step=5)
    assert path.read_text(encoding="utf-8") == "".join(row for row in rows if row != line("grpo", 5))
    directory.keep_lines("grpo", before_step=0)
    assert path.read_text(encoding="utf-8") == rows[0] + rows[4]


def test_a_line_that_was_cut_short_is_dropped_and_the_next_one_starts_anew(directory: RunDirectory) -> None:
    path = write_lines(directory, "metrics.jsonl", line("sft", 1), line("grpo", 2)[:12])
    directory.keep_lines("grpo", before_step=3)
    directory.append("metrics.jsonl", {"stage": "grpo", "step": 3})
    assert path.read_text() == line("sft", 1) + line("grpo", 3)


def test_a_text_may_hold_what_some_take_for_the_end_of_a_line(directory: RunDirectory) -> None:
    directory.append("samples.jsonl", {"stage": "grpo", "step": 1, "completion": "a\u2028b\u0085c\x0bd\r\ne"})
    before = (directory.path / "samples.jsonl").read_bytes()
    directory.keep_lines("sft", before_step=0)
    assert (directory.path / "samples.jsonl").read_bytes() == before


def test_nothing_here_needs_torch() -> None:
    code = "import rlkit.run_directory, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
