"""``rlkit rewards``: rows of a file gain scores; what is wrong is named before anything is scored."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
from preference_pairs import PairsDomain, reward_folder

from rlkit.cli import rewards as verbs
from rlkit.component import Component
from rlkit.config.reward_models import LearnedRewardSettings
from rlkit.config.rewards import ExactMatchSettings
from rlkit.errors import DataError, TrainingError
from rlkit.plugins import Origin, Registry
from rlkit.policy.text_rewards import Sample, TextReward
from rlkit.reward_models.score_file import read_rows, score_rows
from rlkit.reward_models.scorer import learned_reward


@pytest.fixture
def rlkit_(rlkit_):
    """Return a function that runs ``rlkit rewards ...`` and returns exit code, output and error output."""
    return partial(rlkit_, "rewards")


def write(path: Path, *rows) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def scores_of(folder: str, *samples: Sample) -> list[float]:
    return learned_reward(LearnedRewardSettings(path=folder), None).score(list(samples))


def test_completions_and_pairs_gain_scores_and_keep_their_other_fields(rlkit_, tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "rm")
    conversation = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    rows = [
        {"prompt": "hello", "completion": "thanks", "id": 7},
        {"prompt": conversation, "chosen": "gladly", "rejected": "no"},
    ]
    data = write(tmp_path / "rows.jsonl", rows[0], "", rows[1])
    code, said, shown = rlkit_("score", "model", "--data", data, "--out", "there/out.jsonl", f"model={folder}")
    assert code == 0
    assert "model: 1 pairs, the chosen one has more in" in said
    assert "row 2/2" in shown
    found = [json.loads(line) for line in (tmp_path / "there" / "out.jsonl").read_text().splitlines()]
    user, both = "<|user|>hello<|assistant|>", "<|system|>be kind<|user|>hello<|assistant|>"
    expected = scores_of(folder, Sample(user, "thanks"), Sample(both, "gladly"), Sample(both, "no"))
    assert found[0].pop("ms") > 0
    assert found[0] == {**rows[0], "score": pytest.approx(expected[0]), "parts": {}, "error": ""}
    assert found[1] == {
        **rows[1],
        "chosen_score": pytest.approx(expected[1]),
        "rejected_score": pytest.approx(expected[2]),
    }
    assert list((tmp_path / "there").iterdir()) == [tmp_path / "there" / "out.jsonl"]


def test_rendered_prompts_are_taken_as_they_are(rlkit_, tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "rm")
    data = write(tmp_path / "rows.jsonl", {"prompt": "<|user|>hi<|assistant|>", "completion": "thanks"})
    assert rlkit_("score", "model", "--data", data, "--out", "o.jsonl", f"path={folder}", "--rendered")[0] == 0
    found = json.loads((tmp_path / "o.jsonl").read_text())["score"]
    assert found == pytest.approx(scores_of(folder, Sample("<|user|>hi<|assistant|>", "thanks"))[0], abs=1e-6)


def test_any_reward_that_reads_text_scores_rows(rlkit_, tmp_path: Path) -> None:
    rows = [{"prompt": "2 + 2", "completion": text, "answer": "4"} for text in (" 4", "5")]
    data = write(tmp_path / "rows.jsonl", *rows)
    code, said, _ = rlkit_("score", "exact_match", "--data", data, "--out", "o.jsonl")
    assert (code, said) == (0, "exact_match: 2 completions, mean score 0.5; o.jsonl\n")
    assert [json.loads(line)["score"] for line in (tmp_path / "o.jsonl").read_text().splitlines()] == [1.0, 0.0]


def test_every_bad_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    data = write(
        tmp_path / "rows.jsonl",
        {"prompt": "a", "completion": "b"},
        "",
        "{'prompt'",
        [1],
        {"prompt": "", "completion": "b"},
        {"prompt": [{"role": "user"}], "chosen": "b", "rejected": 3},
        {"prompt": "a", "chosen": "b"},
        {"prompt": "a"},
    )
    with pytest.raises(DataError) as error:
        read_rows(data)
    found = [problem.removeprefix(f"{data}:").split(";")[0] for problem in error.value.problems]
    assert found[0].startswith("3: not valid JSON")
    assert found[1:] == [
        "4: expected an object, got [1]",
        '5: prompt: expected text or a list of messages, got ""',
        '6: prompt: expected text or a list of messages, got [{"role": "user"}]',
        "6: rejected: expected text, got 3",
        "7: rejected: expected text, got null",
        "8: neither completion nor chosen and rejected",
    ]


def test_many_problems_are_counted_and_empty_or_missing_files_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        read_rows(write(tmp_path / "bad.jsonl", *["1"] * 30))
    assert len(error.value.problems) == 21
    assert "10 more problems" in error.value.problems[-1]
    with pytest.raises(DataError, match="no row; write one object per line"):
        read_rows(write(tmp_path / "empty.jsonl", ""))
    with pytest.raises(DataError, match="there is no such file"):
        read_rows(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("modl",), "error: no reward is called 'modl'; did you mean 'model'?"),
        (("model", "batchsize=3"), "error: command line: 'batchsize=3': batchsize: no such setting; did you mean"),
        (("model", "batch_size=0"), "error: command line: 'batch_size=0': batch_size: must be >= 1, got 0"),
        (("model", "model=none"), "error: reward model: path: no reward model in 'none': there is no such folder"),
        (("model",), "error: reward model: no folder is named; give it a path, such as model=DIR"),
        (("item_match",), "error: reward item_match: made for the domain recommendation, it reads no rows of text"),
    ],
)
def test_wrong_rewards_and_settings_are_refused_in_a_line(rlkit_, tmp_path: Path, arguments, message: str) -> None:
    data = write(tmp_path / "rows.jsonl", {"prompt": "a", "completion": "b"})
    name, *overrides = arguments
    code, _, said = rlkit_("score", name, "--data", data, "--out", "o.jsonl", *overrides)
    assert code == 2
    assert said.startswith(message)
    assert not (tmp_path / "o.jsonl").exists()


def test_the_data_is_not_replaced(rlkit_, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", {"prompt": "a", "completion": "b", "answer": "b"})
    code, _, said = rlkit_("score", "exact_match", "--data", data, "--out", data)
    assert code == 2
    assert "--out: would replace the data" in said


def test_a_reward_that_scores_rollouts_only_is_named(rlkit_, tmp_path: Path, monkeypatch) -> None:
    entries = {("reward", "exact_match"): (Component(ExactMatchSettings, PairsDomain), Origin("tests", "1"))}
    monkeypatch.setattr("rlkit.plugins.load_plugins", lambda: Registry(entries))
    data = write(tmp_path / "rows.jsonl", {"prompt": "a", "completion": "b"})
    code, _, said = rlkit_("score", "exact_match", "--data", data, "--out", "o.jsonl")
    assert code == 2
    assert "reward exact_match: scores rollouts, not rows" in said


def test_scores_that_are_missing_or_no_numbers_are_refused() -> None:
    rows, settings = [{"prompt": "a", "completion": "b"}] * 2, ExactMatchSettings()
    with pytest.raises(TrainingError, match="1 scores for 2 completions"):
        score_rows(TextReward(lambda samples: [1.0], None), settings, rows)
    with pytest.raises(TrainingError, match="row 2 has a score of inf"):
        score_rows(TextReward(lambda samples: [1.0, float("inf")], None), settings, rows)
    found = score_rows(TextReward(lambda samples: [1.0, float("nan")], None), settings, rows)
    assert [(row["score"], row["error"]) for row in found] == [(1.0, ""), (None, "the reward gave no score")]


def test_a_reward_that_does_not_end_ends_the_scoring(monkeypatch) -> None:
    monkeypatch.setattr("rlkit.policy.supervised.LEAST_CALL_SECONDS", 0.2)
    slow = TextReward(lambda samples: [threading.Event().wait()], None)
    with pytest.raises(TrainingError, match=r"reward exact_match: no answer within 0\.2 seconds"):
        score_rows(slow, ExactMatchSettings(timeout_seconds=0.1), [{"prompt": "a", "completion": "b"}])


class Closing(TextReward):
    """Raises what the user has to mend, and knows whether it was closed."""

    closed: ClassVar[list[bool]] = []

    def __init__(self, settings, domain) -> None:
        super().__init__(self._raise, domain)

    def _raise(self, samples):
        raise DataError("rows.jsonl:1: no answer")

    def close(self) -> None:
        self.closed.append(True)


def test_a_reward_is_closed_when_scoring_fails_and_no_place_is_found_out_too_late(
    rlkit_, tmp_path, monkeypatch
) -> None:
    entries = {("reward", "exact_match"): (Component(ExactMatchSettings, Closing), Origin("tests", "1"))}
    monkeypatch.setattr("rlkit.plugins.load_plugins", lambda: Registry(entries))
    data = write(tmp_path / "rows.jsonl", {"prompt": "a", "completion": "b"})
    code, _, said = rlkit_("score", "exact_match", "--data", data, "--out", tmp_path)
    assert (code, Closing.closed) == (2, [])
    assert f"{tmp_path}: cannot be written: it is a folder; choose another --out" in said
    code, _, said = rlkit_("score", "exact_match", "--data", data, "--out", "o.jsonl")
    assert (code, Closing.closed) == (2, [True])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_half_a_character_in_a_row_is_kept(rlkit_, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", {"prompt": "a", "completion": "\ud83d \u00e9", "answer": "b"})
    assert rlkit_("score", "exact_match", "--data", data, "--out", "o.jsonl")[0] == 0
    assert json.loads((tmp_path / "o.jsonl").read_text())["completion"] == "\ud83d \u00e9"


def test_rewards_are_listed_with_their_domains(rlkit_) -> None:
    code, said, _ = rlkit_("list")
    assert code == 0
    lines = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert "recommendation" in lines["item_match"]
    assert " all " in lines["model"]


def test_settings_of_a_reward_come_from_the_command_line() -> None:
    assert verbs.reward_settings("exact_match", ["weight=2"]).weight == 2
