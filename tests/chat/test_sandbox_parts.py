"""Parts of the sandbox by themselves: plain data, the filter as a program, orphans, folders, and the doctor's page."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlkit.chat.verifiers.sandbox import broker, frames, isolation, plain, syscall_filter, warden
from rlkit.chat.verifiers.sandbox.child import Lost
from rlkit.chat.verifiers.sandbox.job import Checks
from rlkit.chat.verifiers.sandbox.pool import Sandbox
from rlkit.errors import TrainingError


def over_json(tree: object) -> object:
    return json.loads(json.dumps(tree))


@pytest.mark.parametrize(
    "value", [[1, (2.5, None)], {"a": {(1,): {2}}}, 10**400, -(10**400), b"\0\xff", 3 + 4j, "\ud800"]
)
def test_a_value_survives_its_way_as_plain_data(value: object) -> None:
    tree = over_json(plain.encode(value))
    assert plain.is_plain(tree)
    assert plain.decode(tree) == value


@pytest.mark.parametrize(
    "tree",
    [
        {"object": "os"},  # no such tag
        {"tuple": [], "set": []},  # two tags
        {},
        {"dict": [[1]]},  # a key without a value
        {"dict": [1]},
        {"set": "abc"},
        {"int": 3},
        {"int": "7"},  # not hexadecimal
        {"int": "0x_1"},
        {"bytes": [1]},
        {"complex": [1.0]},
        {"complex": ["a", "b"]},
        {"tuple": [{"list": []}]},  # a wrong part inside a right one
        [[[{"object": 1}]]],
    ],
    ids=str,
)
def test_a_tree_that_no_value_has_is_refused(tree: object) -> None:
    assert not plain.is_plain(tree)


def test_a_tree_too_deep_or_too_large_is_refused() -> None:
    deep: list = []
    for _ in range(2 * plain.MAX_DEPTH + 1):
        deep = [deep]
    assert not plain.is_plain(deep)
    assert not plain.is_plain([0] * plain.MAX_NODES)
    assert plain.is_plain([0] * (plain.MAX_NODES - 1))


def test_a_message_that_does_not_fit_is_not_sent() -> None:
    with pytest.raises(frames.TooLong, match="8 MiB"):
        frames.pack({"value": "x" * (8 << 20)})


def judged(program: bytes, architecture: int, number: int, first: int = 0, second: int = 0) -> int:
    """Run a filter as the kernel would (seccomp's part of classic BPF); return its verdict."""
    data = struct.pack("<IIQQQ", number, architecture, 0, first, second)
    place, accumulator = 0, 0
    while True:
        code, yes, no, value = struct.unpack_from("=HBBI", program, 8 * place)
        place += 1
        if code == syscall_filter.LOAD:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == syscall_filter.RETURN:
            return value
        else:
            tests = {
                syscall_filter.IF_EQUAL: accumulator == value,
                syscall_filter.IF_AT_LEAST: accumulator >= value,
                syscall_filter.IF_BITS: bool(accumulator & value),
            }
            place += yes if tests[code] else no


@pytest.mark.parametrize(
    ("machine", "architecture", "calls"),
    [
        ("x86_64", 0xC000003E, {"read": 0, "mmap": 9, "exit_group": 231, "socket": 41, "clone": 56, "kill": 62}),
        ("aarch64", 0xC00000B7, {"read": 63, "mmap": 222, "exit_group": 94, "socket": 198, "clone": 220, "kill": 129}),
    ],
)
def test_the_filter_denies_what_it_must_and_nothing_that_python_needs(
    machine: str, architecture: int, calls: dict[str, int]
) -> None:
    program = syscall_filter.program(machine, pid=77)
    allow, deny = syscall_filter.ALLOW, syscall_filter.EPERM
    for name in ("read", "mmap", "exit_group"):
        assert judged(program, architecture, calls[name]) == allow
    assert judged(program, architecture, calls["socket"]) == deny
    assert judged(program, architecture, calls["clone"], first=0x11) == deny  # SIGCHLD: a fork
    assert judged(program, architecture, calls["clone"], first=0x003D0F00) == allow  # what pthread_create asks for
    assert judged(program, architecture, calls["kill"], first=77) == allow
    for other in (76, 0, 2**64 - 1):
        assert judged(program, architecture, calls["kill"], first=other) == deny
    fcntl, ioctl, chmod = {"x86_64": (72, 16, 91), "aarch64": (25, 29, 52)}[machine]
    for call, command, verdict in ((fcntl, 8, deny), (fcntl, 3, allow), (ioctl, 0x8901, deny), (ioctl, 0x5401, allow)):
        assert judged(program, architecture, call, second=command) == verdict
    assert judged(program, architecture, chmod) == deny
    assert judged(syscall_filter.program(machine, 77, attributes=True), architecture, chmod) == allow
    assert judged(program, 0x40000003, 1) == syscall_filter.KILL  # the calls of 32-bit programs
    assert judged(program, architecture, 0x40000000 + 41) == syscall_filter.ENOSYS  # x32
    assert judged(program, architecture, 500) == syscall_filter.ENOSYS  # newer than the list


def test_a_machine_without_a_table_has_no_filter() -> None:
    with pytest.raises(OSError, match="riscv64"):
        syscall_filter.program("riscv64", 1)


def test_a_folder_is_removed_whatever_is_in_it(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "shut" / "in").mkdir(parents=True)
    (base / "shut" / "in" / "file").touch()
    (base / "link").symlink_to(tmp_path)
    (base / "shut").chmod(0)
    here = os.getcwd()
    os.chdir(base)
    for _ in range(300):  # 300 * 21 characters are longer than a path may be
        os.mkdir("d" * 20)
        os.chdir("d" * 20)
    os.chdir(here)
    warden._remove(str(base))
    assert list(tmp_path.iterdir()) == []


ORPHANS = """
import os, time
from rlkit.chat.verifiers.sandbox import kernel, warden
kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
if os.fork() == 0:
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
    os._exit(0)
time.sleep(.3)
assert len(warden._children()) >= 3, warden._children()
warden._sweep()
print(warden._children())
"""


def test_a_warden_kills_daemons_where_no_namespace_does() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_a_trainer_that_is_killed_leaves_nothing_behind() -> None:
    """Its children are in the middle of a sample."""
    script = (
        "import os, sys, threading, time\n"
        "from rlkit.chat.verifiers.sandbox.job import Checks\n"
        "from rlkit.chat.verifiers.sandbox.pool import Sandbox\n"
        "sandbox = Sandbox(workers=1, timeout_seconds=600, level=sys.argv[1])\n"
        "job = ('def f(x):\\n    while True: pass', Checks(('assert f(1)',)))\n"
        "threading.Thread(target=sandbox.run, args=([job],), daemon=True).start()\n"
        "while sandbox._zygote is None: time.sleep(.01)\n"
        "time.sleep(.5)\n"
        "print(sandbox._zygote.folder, flush=True)\n"
        "time.sleep(600)\n"
    )
    for level in (isolation.detect().level, "rlimits"):
        with subprocess.Popen([sys.executable, "-c", script, level], stdout=subprocess.PIPE, text=True) as trainer:
            assert trainer.stdout is not None
            folder = trainer.stdout.readline().strip()
            assert len(named(folder)) >= 3, level  # the zygote and the wardens at least
            trainer.kill()
        late = time.monotonic() + 20
        while named(folder) and time.monotonic() < late:
            time.sleep(0.05)
        assert named(folder) == [], level
        assert not os.path.exists(folder), level


SLOW = ("import time\ndef f(x):\n    time.sleep(.3)\n    return x", Checks(("assert f(1) == 1",)))
ENDLESS = ("def f(x):\n    while True: pass", Checks(("assert f(1)",)))


def test_samples_whose_zygote_is_killed_are_run_again() -> None:
    sandbox = Sandbox(workers=2, timeout_seconds=60)
    sandbox.start()
    assert sandbox._zygote is not None
    pid = sandbox._zygote.process.pid
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"  # the kernel takes it before the trainer
    threading.Timer(0.4, os.kill, (pid, signal.SIGKILL)).start()
    assert [result.kind for result in sandbox.run([SLOW] * 4)] == ["passed"] * 4
    assert sandbox._zygote.process.pid != pid
    sandbox.close()


def test_a_sample_that_is_lost_twice_has_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise Lost("sandbox: a process was lost")

    monkeypatch.setattr(broker, "judge", lost)
    (result,) = Sandbox(workers=1).run([SLOW])
    assert (result.kind, result.reason, result.total) == ("unsupported", "sandbox: a process was lost", 1)


def test_an_interrupted_run_ends_at_once_and_leaves_nothing() -> None:
    """It has minutes to go, and more samples than workers; closing the sandbox from elsewhere ends it as well."""
    sandbox = Sandbox(workers=2, timeout_seconds=60)
    for stop, raised in (
        (lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt),
        (sandbox.close, TrainingError),
    ):
        sandbox.start()
        assert sandbox._zygote is not None
        folder, started = sandbox._zygote.folder, time.monotonic()
        threading.Timer(0.4, stop).start()
        with pytest.raises(raised):
            sandbox.run([ENDLESS] * 6)
        assert time.monotonic() - started < 15
        late = time.monotonic() + 10
        while named(folder) and time.monotonic() < late:
            time.sleep(0.05)
        assert named(folder) == []
        assert not os.path.exists(folder)


def named(folder: str) -> list[str]:
    """Return the processes with a folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path.parent.name] if folder.encode() in path.read_bytes() else []
        except OSError:
            continue
    return found


def test_a_forked_trainer_gets_a_zygote_of_its_own() -> None:
    sandbox = Sandbox(workers=1, timeout_seconds=60)
    job = ("def f(x):\n    return x", Checks(("assert f(1) == 1",)))
    assert sandbox.run([job])[0].kind == "passed"
    first = sandbox._zygote
    assert first is not None
    first._owner = -1  # as a fork would see it
    assert sandbox.run([job])[0].kind == "passed"
    assert sandbox._zygote is not first
    sandbox.close()


def test_the_doctor_says_how_code_is_isolated_here() -> None:
    from rlkit.cli.main import app

    done = CliRunner().invoke(app, ["doctor", "--json", "--no-torch"])
    facts = json.loads(done.stdout)
    assert facts["sandbox"].startswith(f"{isolation.detect().level}: ")
    assert facts["sandbox layers"].endswith("rlimits")
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "GiB free" in facts["disk, this folder"]
    lines = CliRunner().invoke(app, ["doctor", "--no-torch"]).stdout
    assert facts["sandbox"] in lines


def test_the_doctor_names_what_would_make_the_isolation_stronger() -> None:
    offered = frozenset({"landlock", "filter", "user"})
    host = isolation.Host(offered, {"box": "unshare: operation not permitted", "bubblewrap": "bwrap is not installed"})
    assert isolation.lacking(host) == ["box", "bubblewrap"]
    full = isolation.Host(offered | {"box"}, {"user in box": "no", "bubblewrap": "no"})
    assert isolation.lacking(full) == ["user in box"]
