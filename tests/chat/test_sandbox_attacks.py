"""Hostile code earns nothing and harms nothing, at every isolation level that this host offers."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_attacks import ATTACKS, CANARY

from rlkit.chat.verifiers.sandbox import isolation, pool
from rlkit.chat.verifiers.sandbox.job import Checks, Result
from rlkit.chat.verifiers.sandbox.pool import Sandbox

HONEST = ("def f(x):\n    return {1: 7391, 2: 48213}[x]", Checks(("assert f(1) == 7391", "assert f(2) == 48213")))
SECONDS, HANGING_SECONDS = 60.0, 1.0


class Ground:
    """What hostile code could reach: a canary variable, a private file, two listening sockets, this process."""

    def __init__(self, folder: Path) -> None:
        os.environ["RLKIT_CANARY"] = CANARY
        self.secret = folder / "secret"
        self.secret.write_text(CANARY)
        self.secret.chmod(0o600)
        self.tcp, self.unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
        self.abstract = f"{CANARY}-{os.getpid()}-{folder.name}"
        self.unix.bind("\0" + self.abstract)
        self.unix.listen()
        self.buffer = ctypes.create_string_buffer(CANARY.encode())
        self.signals: list[int] = []
        self.before = signal.signal(signal.SIGURG, lambda number, _: self.signals.append(number))

    def facts(self) -> dict[str, object]:
        return {
            "pid": os.getpid(),
            "address": ctypes.addressof(self.buffer),
            "secret": str(self.secret),
            "source": str(Path(pool.__file__).parent),
            "port": self.tcp.getsockname()[1],
            "abstract": self.abstract,
            "canary": CANARY,
        }

    def visitors(self) -> list[str]:
        found = []
        for name, server in (("tcp", self.tcp), ("unix", self.unix)):
            server.setblocking(False)
            try:
                server.accept()[0].close()
                found.append(name)
            except BlockingIOError:
                continue
        return found

    def close(self) -> None:
        os.environ.pop("RLKIT_CANARY", None)
        signal.signal(signal.SIGURG, self.before)
        self.tcp.close()
        self.unix.close()


class Battle:
    """All attacks at one level, and what is there when they are over."""

    def __init__(self, level: isolation.Level, folder: Path) -> None:
        self.level, self.ground = level, Ground(folder)
        self.limits = resource.getrlimit(resource.RLIMIT_CORE)
        fought = [attack for attack in ATTACKS if isolation.LEVELS.index(attack.needs) >= isolation.LEVELS.index(level)]
        self.results: dict[str, Result] = {}
        for hangs, seconds in ((False, SECONDS), (True, HANGING_SECONDS)):
            attacks = [attack for attack in fought if attack.hangs == hangs]
            sandbox = Sandbox(workers=6 if hangs else 4, timeout_seconds=seconds, memory_mb=256, level=level)
            self.results |= self.fight(sandbox, attacks)
            if not hangs:
                self.honest = sandbox.run([HONEST] * 4)
            folder_name = sandbox._zygote.folder
            self.alive = processes_of(folder_name, expected=3 if level == "bubblewrap" else 1)
            sandbox.close()
            self.alive_after_close = processes_of(folder_name, expected=0)

    def fight(self, sandbox: Sandbox, attacks: list) -> dict[str, Result]:
        facts = self.ground.facts()
        results = sandbox.run([attack.job(**facts) for attack in attacks])
        return {attack.name: result for attack, result in zip(attacks, results)}


def processes_of(folder: str, expected: int, patience: float = 10.0) -> list[str]:
    """Return the processes of a sandbox where they are not as many as expected: a fork keeps its command line.

    Expected are the zygote, and bubblewrap's two. Wardens are ours and end just after their report.
    """
    late = time.monotonic() + patience
    while len(found := _processes(folder.encode())) != expected and time.monotonic() < late:
        time.sleep(0.05)
    return found if len(found) != expected else []


def _processes(marker: bytes) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path.parent.name] if marker in path.read_bytes() else []
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def folders() -> set[str]:
    """Return the sandbox folders that were there before, made by others."""
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("rlkit-sandbox-")}


@pytest.fixture(scope="module", params=isolation.LEVELS)
def battle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, folders) -> Iterator[Battle]:
    host = isolation.detect()
    if not host.reaches(request.param):
        pytest.skip(f"this host does not reach {request.param}: {dict(host.missing)}")
    descriptors = os.listdir("/proc/self/fd")
    found = Battle(request.param, tmp_path_factory.mktemp(request.param))
    yield found
    found.ground.close()
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_earns_nothing(battle: Battle, attack) -> None:
    if attack.name not in battle.results:
        pytest.skip(f"not held by {battle.level} alone; docs/sandbox.md says so")
    result = battle.results[attack.name]
    assert result.kind in attack.kinds, result
    assert len(result.reason) <= 200


def test_honest_code_still_passes(battle: Battle) -> None:
    assert [result.kind for result in battle.honest] == ["passed"] * 4


def test_no_process_and_no_file_is_left(battle: Battle, folders) -> None:
    assert battle.alive == []
    assert battle.alive_after_close == []
    here = tempfile.gettempdir()
    assert {name for name in os.listdir(here) if name.startswith("rlkit-sandbox-")} <= folders
    for place in (here, "/dev/shm", str(Path(pool.__file__).parent), os.path.dirname(os.__file__)):
        assert [name for name in os.listdir(place) if CANARY in name] == []


def test_the_host_was_not_touched(battle: Battle) -> None:
    assert battle.ground.visitors() == []
    assert battle.ground.signals == []
    assert battle.ground.secret.read_text() == CANARY
    assert resource.getrlimit(resource.RLIMIT_CORE) == battle.limits


HARMLESS = (
    "reads its environment",
    "reads the environment that C sees",
    "reads the environment of every process",
    "reads a private file of the user",
    "reads a private file through a symbolic link",
    "looks for the source of rlkit",
    "imports an installed package",
    "opens itself to others and outlives its warden",
    "changes the trainer's limits",
    "connects to a port of the host",
    "connects to a Unix socket of the host",
)


def test_attacks_that_a_plain_process_may_make_would_succeed_there(tmp_path: Path) -> None:
    """What the sandbox keeps out works without it; else the tests above would prove nothing."""
    ground = Ground(tmp_path)
    try:
        for attack in (attack for attack in ATTACKS if attack.name in HARMLESS):
            script = attack.job(**ground.facts())[0] + "\nprint(bool(f()))"
            done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
            assert done.stdout == "True\n", (attack.name, done.stderr)
        assert ground.visitors() == ["tcp", "unix"]
    finally:
        ground.close()


def test_there_are_thirty_attacks_and_more() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 30
