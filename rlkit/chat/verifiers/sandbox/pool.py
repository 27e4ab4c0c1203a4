"""The sandbox as the trainer sees it: jobs in, results out, several at once."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import shutil
import socket
import subprocess
import tempfile
import threading
import uuid
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from rlkit.chat.verifiers.sandbox import broker, bubblewrap, isolation
from rlkit.chat.verifiers.sandbox.child import Child, Lost
from rlkit.chat.verifiers.sandbox.job import Checks, Result
from rlkit.chat.verifiers.threads import call_each
from rlkit.errors import TrainingError

START_SECONDS = 30.0


class Sandbox:
    """Runs code against tests. The zygote starts with the first job and is started again where it was lost.

    Args:
        workers: samples at once; 0: one per core.
        timeout_seconds: wall clock for one sample.
        memory_mb: address space of a process, the interpreter's own 20 MB included.
        level: which isolation, one that the host reaches; none: its strongest.
    """

    def __init__(
        self, workers: int = 0, timeout_seconds: float = 5.0, memory_mb: int = 512, level: isolation.Level | None = None
    ) -> None:
        host = isolation.detect()
        self.level = level or host.level
        assert host.reaches(self.level)
        self.layers = host.layers(self.level)
        self.workers = workers or len(os.sched_getaffinity(0))
        self.timeout_seconds, self.memory_mb = timeout_seconds, memory_mb
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(2 * self.workers):
            self._slots.put(slot)
        self._first_user = isolation.first_user()
        self._zygote: Zygote | None = None
        self._starting = threading.Lock()
        self._closed = 0  # how often: what runs meanwhile must not start it again

    def run(self, jobs: Sequence[tuple[str, Checks]], until_failure: bool = True) -> list[Result]:
        """Run code against its tests.

        Args:
            jobs: (code, its tests).
            until_failure: whether a sample ends with the first test that fails.

        Returns:
            one result for each job, in order. Nothing that the code started is alive by then; where a run is
            interrupted, what still ran is killed.

        Raises:
            TrainingError: the sandbox itself does not work.
        """
        closed = self._closed
        try:
            return call_each(lambda job: self._judge(*job, until_failure, closed), jobs, self.workers)
        except BaseException:  # also Ctrl-C: what still runs is not waited for
            self.close()
            raise

    def _judge(self, code: str, tests: Checks, until_failure: bool, closed: int) -> Result:
        """Run one sample, twice where a process was lost; a sample that is lost again has no verdict."""
        for _ in range(2):
            result = None
            try:
                if self._closed == closed:
                    result = broker.judge(self, code, tests, until_failure)
            except Lost as error:
                reason = str(error)
            if self._closed != closed:  # what came, if anything, was cut short
                raise TrainingError("sandbox: it was closed while it ran; close it afterwards")
            if result:
                return result
        return Result("unsupported", reason, 0, len(tests.cases or tests.tests), 0.0)

    @contextlib.contextmanager
    def child(self, role: str) -> Iterator[Child]:
        """Lend a fresh confined process; it is dead, and its traces are gone, when the block ends.

        Args:
            role: of ``inside.ROLES``.

        Raises:
            TrainingError: no process came.
        """
        zygote, slot = self._alive(), self._slots.get()
        order = {
            "role": role,
            "layers": self.layers,
            "uid": self._first_user + slot,
            "folder": f"{zygote.folder}/{uuid.uuid4().hex}",
            "seconds": math.ceil(self.timeout_seconds),
            "memory_mb": self.memory_mb,
        }
        try:
            with zygote.spawn(order) as child:
                try:
                    yield child
                finally:
                    zygote.children.discard(child)
        finally:
            self._slots.put(slot)

    def start(self) -> None:
        """Start the zygote where there is none; what that takes is not a sample's time.

        Raises:
            TrainingError: it does not start.
        """
        self._alive()

    def _alive(self) -> Zygote:
        with self._starting:
            if self._zygote is None or not self._zygote.serves():
                self._end()
                self._zygote = Zygote(self.layers)
            return self._zygote

    def close(self) -> None:
        """End all of its processes, also those that run; a later job starts them again."""
        self._closed += 1
        with self._starting:
            self._end()

    def _end(self) -> None:
        if self._zygote is not None:
            self._zygote.close()
        self._zygote = None


class Zygote:
    """The process that forks children, and the socket to it.

    Args:
        layers: what it puts around them.

    Raises:
        TrainingError: it does not start.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self.folder = tempfile.mkdtemp(prefix="rlkit-sandbox-")
        os.chmod(self.folder, 0o711)  # children of other users pass through it to folders of their own
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            command = isolation.zygote_command("serve", str(its.fileno()), self.folder, *layers)
            command = bubblewrap.wrapped(command) if "bubblewrap" in layers else command
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={}, cwd="/", pass_fds=[its.fileno()], start_new_session=True,
            )  # fmt: skip
        self.control, self.process, self._owner = mine, process, os.getpid()
        self.children: set[Child] = set()
        """What runs, or ran until its lender took it out."""
        self._end = weakref.finalize(self, _end, process, mine, self.folder, os.getpid(), self.children)
        mine.settimeout(START_SECONDS)
        ready = b""
        with contextlib.suppress(OSError):
            ready = mine.recv(64)
        if ready != b"ready":
            self.close()
            raise TrainingError(f"sandbox: its process does not start within {START_SECONDS:g} s; see `rlkit doctor`")
        if {"box", "bubblewrap"} & {*layers}:
            os.rmdir(self.folder)  # inside, the mount does not need it any more

    def serves(self) -> bool:
        """Tell whether it runs, and whether it is this process's own and not that of a process forked from."""
        return self._owner == os.getpid() and self.process.poll() is None

    def spawn(self, order: dict[str, Any]) -> Child:
        """Order a child.

        Raises:
            Lost: the zygote is gone.
        """
        channel, inner = socket.socketpair()
        line, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with inner, its:
                socket.send_fds(self.control, [json.dumps(order).encode()], [inner.fileno(), its.fileno()])
        except OSError as error:
            channel.close()
            line.close()
            raise Lost(f"sandbox: its process is gone: {error}; run again") from error
        child = Child(channel, line)
        self.children.add(child)
        return child

    def close(self) -> None:
        """End it and all of its children."""
        self._end()


def _end(
    process: subprocess.Popen[bytes],
    control: socket.socket,
    folder: str,
    owner: int,
    children: set[Child],
) -> None:
    control.close()
    if owner != os.getpid():
        return  # a fork of the trainer ends; the zygote is not its own
    for child in tuple(children):  # the zygote waits for their wardens
        child.hang_up()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)
