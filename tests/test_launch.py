"""Workers: their result comes home, or the one error that stopped them, and none is left behind."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlkit.engines import launch
from rlkit.engines.launch import launch_workers
from rlkit.errors import TrainingError

# What stands for `python -m rlkit.worker RUN STAGE`: a shell script, which starts in no time.
HEAD = """#!/bin/sh
run=$3
stage=$4
echo $$ > "$run/pid-$RANK"
result="$run/$stage/worker-result.json"
error="$run/$stage/worker-error-$RANK.json"
fail() {
    printf '{"problems": ["%s"], "exit_code": %s}' "$1" "$2" > "$error.partial"
    mv "$error.partial" "$error"  # whole or not at all, as a real worker writes it
    exit "$2"
}
wait_for() { while [ ! -e "$1" ]; do sleep 0.01; done; }
"""


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return a function that launches two workers, each running a piece of shell."""
    (tmp_path / "run" / "sft").mkdir(parents=True)
    (tmp_path / "run" / "logs").mkdir()

    def start(body: str) -> Any:
        script = tmp_path / "worker"
        script.write_text(HEAD + body)
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(script))
        return launch_workers(tmp_path / "run", "sft", 2, "cpu", {"EXTRA": "of the engine"})

    return start


def running(run: Path, rank: int) -> bool:
    try:
        os.kill(int((run / f"pid-{rank}").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def test_the_result_of_rank_0_comes_home(workers: Callable[[str], Any], tmp_path: Path) -> None:
    assert workers("""[ $RANK = 1 ] || printf '{"policy": {"hash": "abc"}}' > "$result" """) == {
        "policy": {"hash": "abc"}
    }
    assert list((tmp_path / "run" / "sft").iterdir()) == []


def test_every_worker_knows_its_place_and_where_to_meet(workers: Callable[[str], Any], tmp_path: Path) -> None:
    workers(
        'echo "$LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT gpus:$CUDA_VISIBLE_DEVICES $EXTRA" '
        '> "$run/place-$RANK"\n[ $RANK = 1 ] || echo {} > "$result"'
    )
    first, second = ((tmp_path / "run" / f"place-{rank}").read_text().split() for rank in (0, 1))
    assert (first[0], second[0]) == ("0", "1")
    assert first[1:3] == ["2", "2"]
    assert first[3].startswith("127.0.0.1:")
    assert first[4:] == ["gpus:", "of", "the", "engine"]
    assert first[1:] == second[1:]


def test_the_error_that_came_first_is_raised_once_with_its_rank_and_exit_code(
    workers: Callable[[str], Any], tmp_path: Path
) -> None:
    body = 'if [ $RANK = 1 ]; then fail "out of luck" 2; fi; wait_for "$run/$stage/worker-error-1.json"; fail "lost" 1'
    with pytest.raises(TrainingError) as error:
        workers(body)
    assert error.value.problems == ("sft: rank 1: out of luck",)
    assert error.value.exit_code == 2


def test_the_others_end_with_the_one_that_failed(workers: Callable[[str], Any], tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TrainingError, match=r"^sft: rank 1: out of luck$"):
        workers('if [ $RANK = 0 ]; then exec sleep 60; fi; wait_for "$run/pid-0"; fail "out of luck" 1')
    assert time.monotonic() - started < launch.GRACE_SECONDS
    assert not running(tmp_path / "run", 0)


def test_one_that_does_not_end_when_asked_is_killed(
    workers: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.3)
    with pytest.raises(TrainingError, match=r"^sft: rank 1: out of luck$"):
        workers(
            'if [ $RANK = 0 ]; then trap "" TERM; touch "$run/deaf"; while :; do sleep 0.05; done; fi\n'
            'wait_for "$run/deaf"; fail "out of luck" 1'
        )
    assert not running(tmp_path / "run", 0)


@pytest.mark.parametrize(("rank", "where"), [(0, "above"), (1, "in .*logs/sft-rank1.log")])
def test_a_worker_that_dies_without_a_word_is_named_with_its_output(
    rank: int, where: str, workers: Callable[[str], Any], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=rf"^sft: rank {rank}: ended with exit code 9; its output is {where}$"):
        workers(f'if [ $RANK = {rank} ]; then echo "last words"; exit 9; fi; exec sleep 60')
    if rank == 1:
        assert (tmp_path / "run" / "logs" / "sft-rank1.log").read_text() == "last words\n"


def test_an_error_of_an_earlier_call_is_forgotten(workers: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="out of luck"):
        workers('fail "out of luck" 1')
    assert workers('[ $RANK = 1 ] || echo {} > "$result"') == {}
