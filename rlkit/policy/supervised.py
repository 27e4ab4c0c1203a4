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
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import torch

from rlkit.errors import TrainingError
from rlkit.policy.text_rewards import Outcome, Sample, TextReward

if TYPE_CHECKING:
    from rlkit.job import Job

START_SECONDS = 180.0
"""How long a worker may take to import a reward."""
LEAST_CALL_SECONDS = 120.0
"""The shortest deadline of a call in this process."""
MOST_SECONDS = 7 * 86_400.0
"""The longest deadline of all: waiting for longer overflows."""
MOST_BYTES = 64 * 2**20
"""Of a worker's answer."""
LAST_LINES = 5
"""Shown of what a worker said that does not start."""

_COMMAND = "import sys; sys.path[:] = sys.argv[2:]; from rlkit.policy.reward_worker import main; main(int(sys.argv[1]))"

Value = TypeVar("Value")


class Worker:
    """One process that scores samples, started again whenever it had to be killed.

    Args:
        settings: the reward's.
    """

    def __init__(self, settings: Any) -> None:
        self.name = settings.type
        self.hello = {"type": settings.type, "settings": settings.model_dump(mode="json")}
        self.mark = {"RLKIT_REWARD_WORKER": uuid.uuid4().hex}
        self.process: subprocess.Popen | None = None

    def judge(self, samples: Sequence[Sample], seconds: float) -> list[Outcome]:
        """Score samples together; all of them go without a score where the deadline passes or the process dies.

        Raises:
            TrainingError: the reward cannot even be loaded.
        """
        self._start()
        started = time.perf_counter()
        reply, why = self._ask({"samples": [_plain(sample) for sample in samples]}, seconds)
        if reply is not None:
            return [Outcome(**outcome) for outcome in reply["outcomes"]]
        took = 1000 * (time.perf_counter() - started) / max(len(samples), 1)
        self.close()
        return [Outcome(math.nan, why, took)] * len(samples)

    def __del__(self) -> None:
        self.close()

    def _start(self) -> None:
        """Start the process unless it runs; what it says is shown from then on, until then only if it fails.

        Raises:
            TrainingError: it does not start.
        """
        if self.process is not None and self.process.poll() is None:
            return
        self.close()
        with tempfile.TemporaryFile() as said:
            self._spawn(said)
            reply, why = self._ask(self.hello, START_SECONDS)
            if reply is None or "error" in reply:
                self.close()
                why = (why or (reply or {})["error"]).removeprefix(f"reward {self.name}: ")
                raise TrainingError(f"reward {self.name}: its worker does not start: {why}{_last_lines(said)}")

    def _spawn(self, said: IO[bytes]) -> None:
        paths = [os.path.abspath(path) for path in sys.path]  # what a run can import, its rewards can, and no more
        shown = os.dup(2)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _COMMAND, str(shown), *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                bufsize=0,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self.mark},
                pass_fds=(shown,),
                start_new_session=True,
            )
        finally:
            os.close(shown)
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)  # or a process that reads nothing would hold this one

    def _ask(self, request: dict[str, Any], seconds: float) -> tuple[dict[str, Any] | None, str]:
        """Return the reply to a request; None, and why, where there is none in time, or ever."""
        assert self.process is not None
        end = time.monotonic() + min(seconds, MOST_SECONDS)
        try:
            reply = self._read(end) if self._write((json.dumps(request) + "\n").encode(), end) else None
        except (BrokenPipeError, ValueError):  # it is gone, or speaks no JSON
            reply = None
        if reply is not None:
            return reply, ""
        if time.monotonic() >= end:
            return None, f"no answer within {seconds:g} seconds"
        try:
            return None, f"the process ended with code {self.process.wait(5.0)}"
        except subprocess.TimeoutExpired:
            return None, "its answer cannot be read"

    def _write(self, data: bytes, end: float) -> bool:
        """Write a request; False where it is not taken in time."""
        assert self.process is not None
        assert self.process.stdin is not None
        stream, left = self.process.stdin.fileno(), memoryview(data)
        while left:
            if not _ready(stream, select.POLLOUT, end):
                return False
            left = left[os.write(stream, left[: 1 << 16]) :]
        return True

    def _read(self, end: float) -> dict[str, Any] | None:
        """Return the next line as data; None where it does not end in time, or ever."""
        assert self.process is not None
        assert self.process.stdout is not None
        stream, line = self.process.stdout.fileno(), bytearray()
        while not line.endswith(b"\n"):
            data = os.read(stream, 1 << 16) if _ready(stream, select.POLLIN, end) else b""
            line += data
            if not data or len(line) > MOST_BYTES:
                return None
        return json.loads(line)

    def kill(self) -> None:
        """Kill the process with all that it has started."""
        if self.process is None:
            return
        if self.process.returncode is None:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
        for pid in _marked(self.mark):  # left behind, or in sessions of their own
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process, and what it has started; a later sample starts it again."""
        if self.process is None:
            return
        self.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process = None


def _ready(stream: int, event: int, end: float) -> bool:
    """Wait until a stream can be read or written, or has been closed; False where the time is up."""
    poll = select.poll()
    poll.register(stream, event)
    left = end - time.monotonic()
    return left > 0 and bool(poll.poll(1000 * left))


def _marked(mark: Mapping[str, str]) -> list[int]:
    """Return the processes that have a variable in their environment, as far as the system tells."""
    ((name, value),) = mark.items()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            if f"{name}={value}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def _last_lines(said: IO[bytes]) -> str:
    """Return the end of what a worker said, to be put behind a message."""
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - 4096))
    lines = [line.strip() for line in said.read().decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line][-LAST_LINES:]
    return f"; it said: {' | '.join(lines)}" if lines else ""


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
        self.workers = [Worker(settings) for _ in range(settings.workers)]
        self.idle: queue.Queue[Worker] = queue.Queue()
        for worker in self.workers:
            self.idle.put(worker)

    def judge(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Score samples; one that has no score says why."""
        with ThreadPoolExecutor(self.settings.workers) as pool:
            try:
                return list(pool.map(self._one, samples))
            except BaseException:  # also Ctrl-C: what still runs is not waited for
                for worker in self.workers:
                    worker.kill()
                raise

    def _one(self, sample: Sample) -> Outcome:
        worker = self.idle.get()
        try:
            return worker.judge([sample], self.settings.timeout_seconds)[0]
        finally:
            self.idle.put(worker)

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
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
    seconds = min(max(seconds, LEAST_CALL_SECONDS), MOST_SECONDS)
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
