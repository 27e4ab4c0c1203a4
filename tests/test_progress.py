"""Progress on plain output: one line for each state, and nothing that is not known."""

from __future__ import annotations

import pytest

from rlkit.progress import StageProgress


def test_a_line_is_said_once_and_neither_nan_nor_an_unknown_time_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlkit.progress.PLAIN_EVERY_SECONDS", -1.0)
    progress = StageProgress("grpo", 2)
    progress.show(0, {"eval_reward": float("nan")})
    progress.show(2, {"eval_reward": 0.5})
    progress.show(2, {"eval_reward": float("nan")})
    progress.close()
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "grpo: step 0/2",
        "grpo: step 2/2  valid reward 0.5",
        "grpo: step 2/2",
    ]


def test_a_stage_that_was_interrupted_says_where_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    StageProgress("grpo", 40, done=12)
    StageProgress("sft", 40)
    assert capsys.readouterr().err.splitlines() == ["grpo: goes on after step 12 of 40"]
