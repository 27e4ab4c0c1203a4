"""Messages over a byte stream: a length of four bytes, then JSON. Used inside the sandbox, on a bare descriptor."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

LENGTH = struct.Struct(">I")
MAX_BYTES = 4 << 20
"""The longest message; a call or a result that does not fit cannot cross."""


class TooLong(Exception):
    """A message does not fit."""


def pack(message: dict[str, Any]) -> bytes:
    """Return a message as bytes.

    Raises:
        TooLong: it does not fit.
    """
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_BYTES:
        raise TooLong(f"a value of {len(body) / (1 << 20):.0f} MiB")
    return LENGTH.pack(len(body)) + body


def write(descriptor: int, message: dict[str, Any]) -> None:
    """Write a message and wait until it is written.

    Raises:
        TooLong: it does not fit.
    """
    rest = memoryview(pack(message))
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def read(descriptor: int) -> dict[str, Any] | None:
    """Wait for a message of the trainer; None where there will be no more."""
    header = _exactly(descriptor, LENGTH.size)
    body = header and _exactly(descriptor, LENGTH.unpack(header)[0])
    return json.loads(body) if body else None


def _exactly(descriptor: int, count: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(descriptor, min(count - len(parts), 1 << 16))
        if not part:
            return None
        parts += part
    return bytes(parts)
