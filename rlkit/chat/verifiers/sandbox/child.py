"""The trainer's end of one confined process; every byte that comes from it is untrusted."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from typing import Any

from rlkit.chat.verifiers.sandbox import frames
from rlkit.errors import TrainingError

FAREWELL_SECONDS = 30.0
"""A warden needs milliseconds to end its child and to say so."""


class Lost(TrainingError):
    """The sandbox itself lost a process, by no fault of a sample that can be told; it may be run again."""


class Ended(Exception):
    """The process hung up."""


class Misbehaved(Exception):
    """The process sent what it must not send; the text says what."""


class Child:
    """A process, the channel to it, and the line to its warden; a context that ends the process.

    Args:
        channel: stream socket.
        line: on which the warden reports, and which ends the child when it is shut.
    """

    def __init__(self, channel: socket.socket, line: socket.socket) -> None:
        self.channel, self.line = channel, line
        self._unread = bytearray()
        self._report: dict[str, Any] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end()
        finally:
            self.channel.close()
            self.line.close()

    def send(self, message: dict[str, Any], deadline: float) -> None:
        """Send a message.

        Args:
            message: plain data.
            deadline: on the clock of ``time.monotonic``.

        Raises:
            TimeoutError: it is not read in time.
            Ended: nobody reads.
        """
        try:
            self.channel.settimeout(_left(deadline))
            self.channel.sendall(frames.pack(message))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Ended from error

    def receive(self, deadline: float, silent: Child | None = None) -> dict[str, Any]:
        """Wait for a message.

        Args:
            deadline: on the clock of ``time.monotonic``.
            silent: another child, which has nothing to say meanwhile.

        Raises:
            TimeoutError: none comes in time.
            Ended: this child, or the silent one, hung up.
            Misbehaved: it is no message, or the silent child spoke.
        """
        length = frames.LENGTH.unpack(self._exactly(frames.LENGTH.size, deadline, silent))[0]
        if length > frames.MAX_BYTES:
            raise Misbehaved(f"announces a message of {length:,} bytes")
        try:
            message = json.loads(self._exactly(length, deadline, silent))
        except (ValueError, RecursionError) as error:
            raise Misbehaved("sends what is no message") from error
        if not isinstance(message, dict):
            raise Misbehaved("sends what is no message")
        return message

    def receive_all(self, limit: int, deadline: float) -> bytes:
        """Return what comes until the child hangs up, or one byte more than the limit.

        Raises:
            TimeoutError: it does not end in time.
        """
        try:
            while len(self._unread) <= limit:
                self._more(deadline, None)
        except Ended:
            pass
        return bytes(self._unread[: limit + 1])

    def _exactly(self, count: int, deadline: float, silent: Child | None) -> bytes:
        while len(self._unread) < count:
            self._more(deadline, silent)
        taken = bytes(self._unread[:count])
        del self._unread[:count]
        return taken

    def _more(self, deadline: float, silent: Child | None) -> None:
        poll = select.poll()
        for child in (self, silent) if silent else (self,):
            poll.register(child.channel, select.POLLIN)
        ready = dict(poll.poll(_left(deadline) * 1000))
        if silent and silent.channel.fileno() in ready:
            if silent.hung_up():
                raise Ended
            raise Misbehaved("answers a call that was never made")
        if self.channel.fileno() not in ready:
            raise TimeoutError
        try:
            part = self.channel.recv(1 << 16)
        except ConnectionResetError:
            part = b""
        if not part:
            raise Ended
        self._unread += part

    def hung_up(self) -> bool:
        """Tell whether the process has closed its channel; asked where something can be read."""
        self.channel.settimeout(0)
        try:
            return not self.channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def wait(self, deadline: float) -> dict[str, Any]:
        """Wait for the child's own end and return its warden's report: ``stopped``, ``code``, ``memory_mb``.

        Raises:
            TimeoutError: it still runs.
            Lost: the warden is gone without a report.
        """
        if self._report is None:
            self.line.settimeout(_left(deadline))
            try:
                message = self.line.recv(1 << 12)
            except ConnectionResetError:
                message = b""
            if not message:
                raise Lost("sandbox: a process was lost; look for memory shortage on the host, and run again")
            self._report = json.loads(message)
        return self._report

    def end(self) -> dict[str, Any]:
        """Kill the child with all that it started, and return its warden's report.

        Raises:
            Lost: there is none.
        """
        try:
            self.hang_up()
            return self.wait(time.monotonic() + FAREWELL_SECONDS)
        except TimeoutError as error:
            raise Lost(f"sandbox: a process does not end within {FAREWELL_SECONDS:g} s; run again") from error

    def hang_up(self) -> None:
        """Let the warden end the child, and wait for nothing."""
        if self._report is None:
            with contextlib.suppress(OSError):  # the warden has ended, or another thread has closed the line
                self.line.shutdown(socket.SHUT_WR)


def _left(deadline: float) -> float:
    """Return the seconds that are left; a socket takes 0 for "do not wait"."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
