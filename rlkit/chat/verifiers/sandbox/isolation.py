"""Which isolation this host offers, found out once by trying."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import rlkit
from rlkit.chat.verifiers.sandbox import bubblewrap
from rlkit.errors import TrainingError

Level = Literal["namespaces", "bubblewrap", "seccomp", "rlimits"]
LEVELS: tuple[Level, ...] = ("namespaces", "bubblewrap", "seccomp", "rlimits")
"""Strongest first."""
LAYERS: dict[Level, tuple[str, ...]] = {
    "namespaces": ("box", "user in box", "filter"),
    "bubblewrap": ("bubblewrap", "landlock", "filter"),
    "seccomp": ("user", "landlock", "filter"),
    "rlimits": ("user",),
}
"""What is put around the code at each level, as far as the host offers it, beside resource limits."""
MEANING = {
    "namespaces": "no network, no other process and only a few read-only folders exist for the code",
    "bubblewrap": "as namespaces, but all samples share one; a filter of system calls keeps them apart",
    "seccomp": "system calls are filtered, files and memory of others are out of reach",
    "rlimits": "limits on time, memory and processes only: stops accidents, not every attack",
}


@dataclass(frozen=True, slots=True)
class Host:
    """What a host offers.

    Args:
        offered: layers that work.
        missing: layer -> why it does not.
    """

    offered: frozenset[str]
    missing: Mapping[str, str]

    @property
    def level(self) -> Level:
        """Return the strongest level."""
        return next(level for level in LEVELS if self.reaches(level))

    def reaches(self, level: Level) -> bool:
        """Tell whether what makes a level is there; a filter alone leaves files and memory of the user open."""
        needs: dict[Level, bool] = {
            "namespaces": "box" in self.offered,
            "bubblewrap": {"bubblewrap", "filter"} <= self.offered,
            "seccomp": "filter" in self.offered and bool({"landlock", "user"} & self.offered),
            "rlimits": True,
        }
        return needs[level]

    def layers(self, level: Level) -> tuple[str, ...]:
        """Return what is put around the code at a level that the host reaches."""
        return tuple(layer for layer in LAYERS[level] if layer in self.offered)


@functools.cache
def detect() -> Host:
    """Find out what this host offers.

    Raises:
        TrainingError: code cannot be run here at all.
    """
    if not sys.platform.startswith("linux"):
        raise TrainingError(f"sandbox: runs on Linux only, got {sys.platform!r}; verify code on a Linux host")
    with tempfile.TemporaryDirectory(prefix="rlkit-probe-") as folder:
        command = zygote_command("probe", str(first_user()), folder)
        done = subprocess.run(command, capture_output=True, text=True, env={}, cwd="/", stdin=subprocess.DEVNULL)
    if done.returncode:
        raise TrainingError(f"sandbox: does not start: {done.stderr.strip()[-500:]}; report this")
    found = {**json.loads(done.stdout), "bubblewrap": _no_bubblewrap()}
    missing = {layer: problem for layer, problem in found.items() if problem}
    return Host(frozenset(found) - frozenset(missing), missing)


def _no_bubblewrap() -> str:
    """Return why bubblewrap cannot be had; empty where it can."""
    if bubblewrap.program() is None:
        return "bwrap is not installed"
    command = bubblewrap.wrapped(zygote_command("probe", "0", "/tmp"))
    done = subprocess.run(command, capture_output=True, text=True, env={}, cwd="/", stdin=subprocess.DEVNULL)
    return done.stderr.strip()[-200:] or "it fails" if done.returncode else ""


def require(host: Host, least: Level) -> None:
    """Refuse a host that does not reach a level.

    Raises:
        TrainingError: with the reasons.
    """
    if LEVELS.index(host.level) > LEVELS.index(least):
        reasons = "; ".join(f"{layer}: {problem}" for layer, problem in host.missing.items())
        raise TrainingError(
            f"sandbox: isolation {least!r} is asked for, got {host.level!r} at most ({reasons}); run on a host or in a "
            "container that allows it (`rlkit doctor`), or lower the setting isolation"
        )


def lacking(host: Host) -> list[str]:
    """Return the layers that would make the host's level, or a stronger one."""
    wanted = [layer for level in LEVELS[: LEVELS.index(host.level) + 1] for layer in LAYERS[level]]
    return [layer for layer in dict.fromkeys(wanted) if layer in host.missing]


def first_user() -> int:
    """Return the first of a range of user ids that nothing on a host belongs to, another range for each process."""
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    mapped = max(int(start) + int(count) for start, _, count in (line.split() for line in lines))
    return 1_900_000_000 + os.getpid() % 100_000 * 1000 if mapped > 2_100_000_000 else 60_600


def zygote_command(*arguments: str) -> list[str]:
    """Return the command of a zygote: an isolated interpreter that finds rlkit and the standard library only."""
    root = Path(rlkit.__file__).parent.parent
    script = (
        f"import sys; sys.path.insert(0, {str(root)!r}); "
        "from rlkit.chat.verifiers.sandbox.zygote import main; main(sys.argv[1:])"
    )
    return [sys.executable, "-I", "-S", "-c", script, *arguments]
