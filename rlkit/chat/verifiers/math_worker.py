"""Ask math-verify whether two formulas are equal, in a process that may be killed.

math-verify's own time limit is a signal that works in a main thread only, and no limit inside a process stops a single
huge power. So a helper process imports it once and forks a child that answers; the kernel ends a child that runs out of
time or memory, and a new one is forked within milliseconds. The helper ends when its standard input closes.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache, lru_cache
from selectors import EVENT_READ, DefaultSelector
from typing import IO, Any

MEMORY_BYTES = 2 * 1024**3
"""Address space of the child that computes."""
START_SECONDS = 60.0
"""How long the helper may take to import math-verify."""
CLOCK = 5.0
"""A question may take so many times its processor time on the clock: the machine may be busy."""
GRACE_SECONDS = 10.0
"""How long after a question's own limits the helper may still be silent before it is ended."""
_START = "import sys; sys.path[:] = sys.argv[1:]; from rlkit.chat.verifiers.math_worker import serve; serve()"


class MathWorker:
    """The helper process, started with the first question and again after it had to be ended."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def same(self, wanted: str, got: str, seconds: float) -> bool:
        """Return whether math-verify takes two formulas for equal.

        Args:
            wanted: the right one.
            got: the other.
            seconds: of processor time; where they do not suffice the formulas count as different.
        """
        question = json.dumps([wanted, got, seconds]).encode() + b"\n"
        with self.lock:
            for _ in range(2):  # once more where the helper itself has died
                answer = self._ask(question, seconds)
                if answer in (b"0\n", b"1\n"):
                    return answer == b"1\n"
            return False

    def _ask(self, question: bytes, seconds: float) -> bytes:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(question)
            process.stdin.flush()
        except BrokenPipeError:
            self.stop()
            return b""
        answer = _line(process.stdout, CLOCK * seconds + GRACE_SECONDS)
        if not answer:
            self.stop()
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            self.stop()
            paths = [os.path.abspath(path) for path in sys.path]
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            assert self.process.stdout is not None
            _line(self.process.stdout, START_SECONDS)  # it is ready
        return self.process

    def stop(self) -> None:
        """End the helper and its child."""
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # a question was left in the buffer
                    pipe.close()


def _line(pipe: IO[bytes], seconds: float) -> bytes:
    """Return the next line; nothing where none comes in time, or the other end has closed."""
    with DefaultSelector() as selector:
        selector.register(pipe, EVENT_READ)
        return pipe.readline() if selector.select(seconds) else b""


@cache
def worker(process: int) -> MathWorker:
    """Return the worker that all rewards of a process share; ``process``: its number, since a fork has its own."""
    made = MathWorker()
    atexit.register(made.stop)
    return made


# ---- in the helper process


def serve() -> None:
    """Answer questions, a line each, until standard input closes."""
    import logging

    import math_verify  # noqa: F401  (so that every child has it)

    logging.disable(logging.CRITICAL)
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b"ready\n")
    answers.flush()
    child: _Child | None = None
    while question := asked.readline():
        child = child or _Child()
        answer = child.ask(question)
        if not answer:  # the kernel ended it
            child.end()
            child = None
        answers.write(answer or b"0\n")
        answers.flush()


class _Child:
    """A fork of the helper, which computes."""

    def __init__(self) -> None:
        asks, self.questions = os.pipe()
        self.answers, tells = os.pipe()
        self.number = os.fork()
        if self.number == 0:
            os.close(self.questions)
            os.close(self.answers)
            _compute(os.fdopen(asks, "rb"), os.fdopen(tells, "wb"))
            os._exit(0)
        os.close(asks)
        os.close(tells)
        self.reader = os.fdopen(self.answers, "rb")

    def ask(self, question: bytes) -> bytes:
        try:
            os.write(self.questions, question)
        except BrokenPipeError:
            return b""
        return self.reader.readline()

    def end(self) -> None:
        os.close(self.questions)
        self.reader.close()
        os.waitpid(self.number, 0)


def _compute(questions: IO[bytes], answers: IO[bytes]) -> None:
    for end in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(end, signal.SIG_DFL)  # ends the process, whatever it is doing
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in questions:
        wanted, got, seconds = json.loads(line)
        _limit(seconds)
        same = _same(wanted, got)
        _limit(0)
        answers.write(b"1\n" if same else b"0\n")
        answers.flush()


def _limit(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, CLOCK * seconds)


def _same(wanted: str, got: str) -> bool:
    from math_verify import verify

    try:
        return bool(verify(_parsed(wanted), _parsed(got), timeout_seconds=None))
    except (RecursionError, MemoryError):
        return False


@lru_cache(maxsize=256)
def _parsed(text: str) -> list[Any]:
    """Parse a formula; the right answer of a group comes many times."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    kinds = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    return parse(f"${text}$", extraction_config=kinds, parsing_timeout=None)
