"""Rewards under supervision: in processes that can be killed, with a deadline for every sample.

A sample whose reward raises, crashes or takes too long gets no score, and the next one a fresh process. A reward that
needs this process (a learned model, a tensor reward) runs in a thread with a deadline for the whole call instead:
nothing can be killed there, so the run ends with an error rather than hanging.
"""

from __future__ import annotations

import json
import math
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from rlkit.errors import TrainingError
from rlkit.policy.text_rewards import Outcome, Sample, TextReward

if TYPE_CHECKING:
    from rlkit.job import Job

START_SECONDS = 180.0
"""How long a worker may take to import a reward."""
LEAST_CALL_SECONDS = 120.0
"""The shortest deadline of a call in this process."""

Value = TypeVar("Value")


class Worker:
    """One process that scores samples, started again whenever it had to be killed.

    Args:
        settings: the reward's.
    """

    def __init__(self, settings: Any) -> None:
        self.hello = json.dumps({"type": settings.type, "settings": settings.model_dump(mode="json")}) + "\n"
        self.process: subprocess.Popen | None = None
        self.rest = b""

    def judge(self, samples: Sequence[Sample], seconds: float) -> list[Outcome]:
        """Score samples together; all of them go without a score where the deadline passes or the process dies.

        Raises:
            TrainingError: the reward cannot even be loaded.
        """
        self._start()
        assert self.process is not None
        started = time.perf_counter()
        try:
            self._write(json.dumps({"samples": [_plain(sample) for sample in samples]}) + "\n")
            reply = self._read(seconds)
        except BrokenPipeError:
            reply = None
        took = 1000 * (time.perf_counter() - started) / max(len(samples), 1)
        if reply is not None:
            return [Outcome(**outcome) for outcome in reply["outcomes"]]
        why = f"no answer within {seconds:g} seconds"
        if took * len(samples) < 1000 * seconds:  # it has closed its end instead
            with suppress(subprocess.TimeoutExpired):
                why = f"the process ended with code {self.process.wait(5.0)}"
        self.close()
        return [Outcome(math.nan, why, took)] * len(samples)

    def __del__(self) -> None:
        self.close()

    def _start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        self.rest = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rlkit.policy.reward_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._write(self.hello)
        reply = self._read(START_SECONDS)
        if reply is None or "error" in reply:
            self.close()
            raise TrainingError(f"reward: its worker does not start: {(reply or {}).get('error', 'no answer')}")

    def _write(self, text: str) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """Return the next reply; None where there is none in time, or ever."""
        assert self.process is not None
        assert self.process.stdout is not None
        end, stream = time.monotonic() + seconds, self.process.stdout.fileno()
        while b"\n" not in self.rest:
            ready, _, _ = select.select([stream], [], [], max(0.0, end - time.monotonic()))
            data = os.read(stream, 1 << 16) if ready else b""
            if not data:
                return None
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Kill the process with all that it has started."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):  # what was not read can no longer be
                if stream is not None:
                    stream.close()
        self.process = None


def _plain(sample: Sample) -> dict[str, Any]:
    """Return a sample as data that JSON can hold; what it cannot becomes text."""
    row = {name: getattr(sample, name) for name in Sample.__slots__}
    return json.loads(json.dumps(row, default=str))


class SupervisedReward(TextReward):
    """A reward whose samples are scored one by one in worker processes.

    Args:
        settings: the reward's; ``timeout_seconds`` for each sample, ``workers`` at the same time.
        domain: whose tokenizer decodes rollouts.
    """

    def __init__(self, settings: Any, domain: Any) -> None:
        super().__init__(lambda samples: [outcome.score for outcome in self.judge(samples)], domain)
        self.settings = settings
        self.idle: queue.Queue[Worker] = queue.Queue()
        for _ in range(settings.workers):
            self.idle.put(Worker(settings))

    def judge(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Score samples; one that has no score says why."""
        with ThreadPoolExecutor(self.settings.workers) as pool:
            return list(pool.map(self._one, samples))

    def _one(self, sample: Sample) -> Outcome:
        worker = self.idle.get()
        try:
            return worker.judge([sample], self.settings.timeout_seconds)[0]
        finally:
            self.idle.put(worker)

    def close(self) -> None:
        """End the workers."""
        for worker in list(self.idle.queue):
            worker.close()


@cache
def _calls() -> queue.Queue:
    """Return where calls with a deadline are put; one thread makes them all.

    With a thread per call a run of the tests once stood still while such a thread was ending; why is not known.
    """
    calls: queue.Queue[tuple[Callable[[], Any], queue.Queue]] = queue.Queue()

    def work() -> None:
        while True:
            call, found = calls.get()
            try:
                found.put((True, call()))
            except BaseException as error:  # handed to the caller, whatever it is
                found.put((False, error))
            del call, found

    threading.Thread(target=work, daemon=True).start()
    return calls


def within(seconds: float, name: str, call: Callable[[], Value]) -> Value:
    """Return what a call in this process returns.

    Args:
        seconds: its deadline.
        name: of the reward, for the message.
        call: runs in the thread of such calls, which is left behind where it does not end.

    Raises:
        TrainingError: it takes longer.
    """
    found: queue.Queue[tuple[bool, Any]] = queue.Queue()
    _calls().put((call, found))
    seconds = max(seconds, LEAST_CALL_SECONDS)
    try:
        good, value = found.get(timeout=seconds)
    except queue.Empty:
        _calls.cache_clear()  # its thread is lost
        raise TrainingError(
            f"reward {name}: no answer within {seconds:g} seconds; look for an endless loop or a connection without a "
            "time-out in it, or raise its timeout_seconds"
        ) from None
    if not good:
        raise value
    return value


def load_supervised(job: Job, settings: Any) -> Any:
    """Load a reward of a stage: in processes of its own where its settings ask for them, else in this one."""
    return SupervisedReward(settings, job.domain) if settings.supervised else job.load_reward(settings)


def judge(reward: TextReward, name: str, settings: Any, samples: Sequence[Sample]) -> list[Outcome]:
    """Score samples under the deadline of the reward's settings; a sample without a score says why.

    Raises:
        TrainingError: a reward in this process takes longer than all samples may together.
    """
    if isinstance(reward, SupervisedReward):
        return reward.judge(samples)
    seconds = settings.timeout_seconds * max(len(samples), 1)
    return within(seconds, name, lambda: torch.no_grad()(reward.judge)(samples))


def close_rewards(rewards: Iterable[Any]) -> None:
    """End the processes of the rewards that have any."""
    for reward in rewards:
        if callable(end := getattr(reward, "close", None)):
            end()
