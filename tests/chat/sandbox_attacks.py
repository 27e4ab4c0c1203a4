"""Attacks on the sandbox: what hostile code tries, and tests that pass only where it gets away with it."""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.chat.verifiers.sandbox.job import Case, Checks

SECRET = ("assert f(1) == 7391", "assert f(2) == 48213")  # nothing tells the code these numbers
CANARY = "rlkit-canary-5d1f"
ANY = "rlimits"  # holds with resource limits alone
CALLS = "seccomp"  # needs filtered system calls, and files and memory out of reach


@dataclass(frozen=True)
class Attack:
    """Hostile code.

    Args:
        name: what it tries.
        code: it; ``{port}`` and the like are filled in by the tests.
        tests: these pass where the attack succeeds, or nobody could know their answers.
        kinds: what the result may be; never passed.
        needs: the weakest level that must withstand.
        hangs: whether it runs until its time is up.
    """

    name: str
    code: str
    tests: tuple[str, ...] = SECRET
    kinds: tuple[str, ...] = ("failed",)
    needs: str = ANY
    hangs: bool = False
    cases: tuple[Case, ...] = ()

    def job(self, **facts: object) -> tuple[str, Checks]:
        """Return what the sandbox is given."""
        code = self.code
        for name, fact in facts.items():
            code = code.replace("{" + name + "}", repr(fact))
        return code, Checks(cases=self.cases) if self.cases else Checks(self.tests, entry_point="f")


BREACH = ("assert f()",)
SYSCALL = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
HONEST_LOOKING = "def f(x=None):\n    return None\n"
FRAME = """
import json, os, struct
def frame(message):
    body = json.dumps(message).encode()
    return struct.pack('>I', len(body)) + body
"""
IDS = """
import sys
def current_call():
    frame = sys._getframe()
    while frame:
        for value in frame.f_locals.values():
            if isinstance(value, dict) and 'id' in value and 'kwargs' in value:
                return value['id']
        frame = frame.f_back
"""

FORGED = [
    Attack("prints that it passed", "import os\nprint('passed')\nos.write(2, b'passed')\n" + HONEST_LOOKING),
    Attack("leaves with status 0 when it is loaded", "import os\nos._exit(0)", kinds=("error",)),
    Attack("raises SystemExit when it is loaded", "import sys\nsys.exit(0)", kinds=("error",)),
    Attack("leaves with status 0 in a call", "import os\ndef f(x):\n    os._exit(0)", kinds=("error",)),
    Attack("raises SystemExit in a call", "def f(x):\n    raise SystemExit(0)"),
    Attack("leaves by an exit handler", "import atexit, os\natexit.register(os._exit, 0)\ndef f(x):\n    exit(0)"),
    Attack("returns what equals everything",
           "class A:\n    def __eq__(self, other):\n        return True\n    __hash__ = None\ndef f(x):\n"
           "    return A()",
           kinds=("unsupported",)),
    Attack("returns an int that equals everything",
           "class A(int):\n    __eq__ = lambda self, other: True\n    __hash__ = int.__hash__\ndef f(x):\n"
           "    return A(1)"),
    Attack("returns what claims to be an int",
           "class A:\n    __class__ = int\n    __eq__ = lambda self, other: True\n    def __int__(self): return 1\n"
           "def f(x):\n    return A()", kinds=("failed", "error", "unsupported")),
    Attack("returns a list that equals everything",
           "class A(list):\n    __eq__ = lambda self, other: True\ndef f(x):\n    return A()"),
    Attack("returns NaN", "def f(x):\n    return float('nan')"),
    Attack("returns an object that pickle would run",
           "import os\nclass A:\n    def __reduce__(self): return os._exit, (0,)\ndef f(x):\n    return A()",
           kinds=("unsupported",)),
    Attack("returns a generator", "def f(x):\n    yield 7391", kinds=("unsupported",)),
    Attack("patches AssertionError away",
           "import builtins\nbuiltins.AssertionError = None\nbuiltins.__dict__['__debug__x'] = 0\n" + HONEST_LOOKING),
    Attack("patches every builtin that a comparison could use",
           "import builtins\nfor name in ('isinstance', 'len', 'all', 'any', 'abs', 'bool', 'getattr'):\n"
           "    setattr(builtins, name, lambda *a, **k: True)\n" + HONEST_LOOKING, kinds=("failed", "error")),
    Attack("replaces the modules that carry values",
           "import sys\nfor name, module in list(sys.modules.items()):\n"
           "    if 'sandbox' in name:\n        for part in ('encode', 'is_plain'):\n"
           "            if hasattr(module, part): setattr(module, part, lambda *a: {'passed': ''})\n" + HONEST_LOOKING,
           kinds=("error",)),
    Attack("raises AssertionError", "def f(x):\n    raise AssertionError"),
    Attack("ends the loops of its tests",
           "class Stop(StopIteration): pass\ndef f(x):\n    raise Stop if x == 1 else StopIteration",
           ("for got, wanted in zip(map(f, [1, 2]), [7391, 48213]):\n    assert got == wanted",
            "assert all(map(lambda x: f(x) == 7391, [2, 1]))")),
    Attack("ends the asynchronous loops of its tests", "def f(x):\n    raise StopAsyncIteration",
           ("import asyncio\nclass Results:\n    __aiter__ = lambda self: self\n    async def __anext__(self): "
            "return f(1)\nasync def main():\n    async for result in Results(): assert result == 7391\n"
            "asyncio.run(main())",)),
    Attack("returns texts, dicts and lists with methods of their own",
           "class S(str):\n    __eq__ = lambda s, o: True\n    __str__ = lambda s: s\n    __hash__ = None\n"
           "class D(dict):\n    items = lambda s: [(S('a'), S('b'))]\nclass L(list):\n"
           "    __iter__ = lambda s: iter([D()])\ndef f(x):\n    return L()"),
    Attack("raises what lies about its class and its arguments",
           "class M(type):\n    __name__ = property(lambda c: 1 / 0)\nclass E(Exception, metaclass=M):\n"
           "    args = property(lambda s: 1 / 0)\ndef f(x):\n    raise E", kinds=("failed", "error")),
    Attack("raises what cannot be shown",
           "class E(Exception):\n    def __str__(self): raise E\ndef f(x):\n    raise E"),
    Attack("raises what takes 100 MB to show",
           "class E(Exception):\n    def __str__(self): return 'passed' * 20_000_000\ndef f(x):\n    raise E"),
    Attack("empties its argument so that both sides are empty", "def f(x):\n    x.clear()\n    return []",
           ("a = [3, 1, 2]\nassert f(a) == sorted(a)",)),
    Attack("defines what the tests are called with", "def check(f): pass\ndef f(x): pass\nasserts = []"),
]  # fmt: skip

PROTOCOL = [
    Attack("writes a verdict on its own channel",
           FRAME + "os.write(3, frame({'passed': ''}) * 2 + frame({'done': True}))\n" + HONEST_LOOKING,
           kinds=("error",)),
    Attack("writes a verdict on every descriptor there could be",
           FRAME + "def f(x):\n    for fd in range(256):\n        try: os.write(fd, frame({'passed': ''}))\n"
           "        except OSError: pass", kinds=("error",)),
    Attack("answers calls before they are made",
           FRAME + "os.write(3, frame({'names': ['f']}) + b''.join(frame({'id': n, 'value': 7391}) for n in "
           "range(99)))\n"
           "import time; time.sleep(60)", kinds=("error",)),
    Attack("answers one call twice",
           FRAME + IDS + "def f(x):\n    os.write(3, frame({'id': current_call(), 'value': 1}))\n    return 1",
           kinds=("error", "failed")),
    Attack("answers the first call for all that follow",
           FRAME + IDS + "def f(x):\n    os.write(3, frame({'id': current_call(), 'value': 1}) * 50)\n"
           "    import time; time.sleep(60)", ("assert f(1) == 1", *SECRET), kinds=("error", "failed")),
    Attack("speaks between two calls",
           FRAME + "import threading, time\ndef talk():\n    time.sleep(.2)\n    os.write(3, frame({'passed': ''}))\n"
           "def f(x):\n    threading.Thread(target=talk, daemon=True).start()\n    return 1",
           ("import time\nassert f(1) == 1\ntime.sleep(5)", *SECRET), kinds=("error", "failed")),
    Attack("returns a value and empties its argument as well",
           FRAME + IDS + "def f(x):\n    os.write(3, frame({'id': current_call(), 'value': [], 'changed': [[]]}))\n"
           "    import time; time.sleep(9)", ("a = [3, 1, 2]\nassert f(a) == sorted(a)",), kinds=("error",)),
    Attack("raises over the wire what ends a loop",
           FRAME + IDS + "def f(x):\n    n = current_call()\n"
           "    os.write(3, frame({'id': n, 'error': 'StopIteration', 'args': []}))\n    import time; time.sleep(9)",
           ("for got in map(f, [1]):\n    assert got == 7391",)),
    Attack("adds a verdict to every message it sends",
           "import json\nold = json.dumps\n"
           "json.dumps = lambda m, **k: old({**m, 'passed': '', 'done': True}, **k)\ndef f(x):\n    return 0"),
    Attack("clears what serves its calls",
           "import sys\nframe = sys._getframe()\nwhile frame:\n"
           "    if frame.f_globals is not globals(): frame.f_globals.clear()\n    frame = frame.f_back\n"
           + HONEST_LOOKING,
           kinds=("error",)),
    Attack("stops listening, but speaks", "import socket\nsocket.socket(fileno=3).shutdown(socket.SHUT_RD)\n"
           + HONEST_LOOKING, kinds=("error", "failed")),
    Attack("sends what is no JSON", "import os\n"
           "os.write(3, b'\\0\\0\\0\\x04{]x}')\n" + HONEST_LOOKING, kinds=("error",)),
    Attack("sends JSON that is no message", "import os\nos.write(3, b'\\0\\0\\0\\x02[]')\n" + HONEST_LOOKING,
           kinds=("error",)),
    Attack("announces four gigabytes", "import os\nos.write(3, b'\\xff' * 4)\n" + HONEST_LOOKING, kinds=("error",)),
    Attack("announces a frame and never sends it",
           "import os, time\nos.write(3, b'\\0\\0\\0\\x09')\ntime.sleep(60)", kinds=("timeout",), hangs=True),
    Attack("nests a reply a million deep",
           "import os, struct\nbody = b'[' * 1_000_000\n"
           "os.write(3, struct.pack('>I', len(body)) + body)\n" + HONEST_LOOKING,
           kinds=("error",)),
    Attack("returns a list nested a hundred thousand deep",
           "def f(x):\n    a = []\n    for _ in range(100_000): a = [a]\n    return a", kinds=("unsupported",)),
    Attack("returns a list that contains itself", "def f(x):\n    a = []\n    a.append(a)\n    return a",
           kinds=("unsupported",)),
    Attack("returns a hundred megabytes", "def f(x):\n    return 'x' * 100_000_000", kinds=("unsupported",)),
    Attack("names a type that does not exist",
           FRAME + IDS + "def f(x):\n    os.write(3, frame({'id': current_call(), 'value': {'object': 'os'}}))\n"
           "    return 7391", kinds=("error",)),
    Attack("returns keys that all collide",
           "def f(x):\n    return {n * (2 ** 61 - 1) for n in range(9)}, [0] * 10", ("assert f(1) == 7391",)),
    Attack("sends a set of a hundred thousand keys that collide",
           FRAME + IDS + "def f(x):\n    keys = [n * (2 ** 61 - 1) for n in range(1, 100_000)]\n"
           "    os.write(3, frame({'id': current_call(), 'value': {'set': keys}}))\n    import time; time.sleep(60)",
           kinds=("timeout",), hangs=True),
    Attack("sends a number of a million digits",
           FRAME + IDS + "def f(x):\n    body = b'{\"id\": %d, \"value\": %s}' % (current_call(), b'9' * 1_000_000)\n"
           "    os.write(3, struct.pack('>I', len(body)) + body)", kinds=("error",)),
    Attack("closes every descriptor", "import os\nos.closerange(0, 1000)\n" + HONEST_LOOKING, kinds=("error",)),
    Attack("never reads its calls, and is sent many",
           "import time\ndef f(x):\n    time.sleep(60)", ("for _ in range(9):\n    f('x' * 3_000_000)",),
           kinds=("timeout",), hangs=True),
]  # fmt: skip

SPYING = [
    Attack("looks for the tests in its own memory",
           "import gc, re, sys\ndef f(x):\n"
           "    texts = [o for o in gc.get_objects() if isinstance(o, (dict, list, tuple))]\n"
           "    for held in texts:\n        for o in (held.values() if isinstance(held, dict) else held):\n"
           "            if isinstance(o, (str, bytes)) and len(o) < 10_000:\n"
           "                found = re.search(r'assert f\\(%d\\) == (\\d+)' % x, o if isinstance(o, str) else '')\n"
           "                if found: return int(found[1])"),
    Attack("reads the raw memory of its process",
           "import re\ndef f(x):\n    mem = open('/proc/self/mem', 'rb', 0)\n"
           "    for line in open('/proc/self/maps'):\n        a, b = (int(n, 16) for n in line.split()[0].split('-'))\n"
           "        try:\n            mem.seek(a); found = re.search(rb'as' + rb'sert f.%d. == (\\d+)' % x, "
           "mem.read(b - a))\n"
           "        except (OSError, OverflowError, ValueError): continue\n        if found: return int(found[1])"),
    Attack("reads its environment", f"import os\ndef f():\n    return {CANARY!r} in str(os.environ)", BREACH),
    Attack("reads the environment that C sees",
           SYSCALL + "import itertools\ndef f():\n"
           "    environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')\n"
           f"    texts = itertools.takewhile(bool, (environ[n] for n in itertools.count()))\n"
           f"    return any({CANARY!r}.encode() in text for text in texts)", BREACH),
    Attack("reads the environment of every process",
           f"import glob\ndef f():\n    for path in glob.glob('/proc/[0-9]*/environ'):\n        try:\n"
           f"            if {CANARY!r}.encode() in open(path, 'rb').read(): return True\n        except OSError: pass",
           BREACH, needs=CALLS),
    Attack("reads the memory of every process",
           "import glob\ndef f():\n    for path in glob.glob('/proc/[0-9]*/mem'):\n"
           "        if path != '/proc/self/mem':\n            try:\n                open(path, 'rb'); return True\n"
           "            except OSError: pass", BREACH, needs=CALLS),
    Attack("opens the files of every process",
           "import glob, os\ndef f():\n    for path in glob.glob('/proc/[0-9]*/fd/*'):\n"
           "        if int(path.split('/')[2]) != os.getpid():\n            try:\n"
           "                os.open(path, 0); return True\n"
           "            except OSError: pass", BREACH, needs=CALLS),
    Attack("reads the trainer's memory by a system call",
           SYSCALL + "def f():\n    buffer = ctypes.create_string_buffer(8)\n"
           "    class V(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]\n"
           "    to, of = V(ctypes.addressof(buffer), 8), V({address}, 8)\n"
           "    return libc.process_vm_readv({pid}, ctypes.byref(to), 1, ctypes.byref(of), 1, 0) > 0", BREACH,
           needs=CALLS),
    Attack("traces other processes",
           SYSCALL + "import os\ndef f():\n    return any(libc.ptrace(16, pid, 0, 0) == 0\n"
           "        for pid in ({pid}, os.getppid(), *range(2, 50)) if pid not in (0, "
           "os.getpid()))", BREACH, needs=CALLS),
    Attack("reads a private file of the user", "def f():\n    return open({secret}).read()", BREACH, needs=CALLS),
    Attack("reads a private file through a symbolic link",
           "import os\ndef f():\n    os.symlink({secret}, 'innocent')\n    return open('innocent').read()", BREACH,
           needs=CALLS),
    Attack("looks for the source of rlkit", "import os\ndef f():\n"
           "    return os.listdir(os.path.dirname({source}))", BREACH,
           needs=CALLS),
    Attack("imports an installed package", "import numpy\ndef f():\n    return True", BREACH, kinds=("error",)),
]  # fmt: skip

HARM = [
    Attack("forks a bomb", "import os\ndef f(x):\n    while True: os.fork()", kinds=("failed", "error", "timeout"),
           needs=CALLS),
    Attack("leaves a daemon behind",
           "import os, time\ndef f():\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
           "            time.sleep(600)\n        os._exit(0)\n    return False", BREACH, kinds=("failed", "error")),
    Attack("starts a thousand threads",
           "import threading, time\nthreading.stack_size(32768)\ndef f():\n"
           "    for _ in range(1000): threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
           "    return True",
           BREACH, kinds=("failed", "timeout"), hangs=True),
    Attack("keeps a thread that works on", "import threading\ndef work():\n    while True: pass\n"
           "threading.Thread(target=work, daemon=True).start()\n" + HONEST_LOOKING, kinds=("failed", "error")),
    Attack("asks for a terabyte", "def f():\n    return bool(bytearray(1 << 40))", BREACH),
    Attack("fills the memory bit by bit", "def f():\n    a = []\n    while True: a.append(bytearray(1 << 20))",
           kinds=("failed", "error")),
    Attack("raises its own limits",
           "import resource\ndef f():\n    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))\n"
           "    return len(bytearray(1 << 30))", BREACH),
    Attack("writes a file without end",
           "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\ndef f():\n"
           "    with open('big', 'wb') as file:\n"
           "        for _ in range(100): file.write(bytes(1 << 20))\n    return True", BREACH),
    Attack("leaves folders that are hard to remove",
           "import os\ndef f():\n    for _ in range(600):\n        os.mkdir('d' * 20); os.chdir('d' * 20)\n"
           "    open('file', 'w').close(); os.chmod('.', 0)\n    return False", BREACH),
    Attack("recurses without end", "def f(x):\n    return f(x)"),
    Attack("recurses until the stack is full",
           "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x):\n    a = []\n    for _ in range(10 ** 6): a = [a]\n"
           "    return repr(a)", kinds=("failed", "error")),
    Attack("loops for ever", "def f(x):\n    while True: pass", kinds=("timeout",), hangs=True),
    Attack("loops for ever when it is loaded", "while True: pass", kinds=("timeout",), hangs=True),
    Attack("ignores every signal and sleeps",
           "import signal, time\nfor number in range(1, 65):\n    try: signal.signal(number, signal.SIG_IGN)\n"
           "    except (OSError, ValueError): pass\ndef f(x):\n"
           "    while True: time.sleep(9)", kinds=("timeout",), hangs=True),
    Attack("stops itself", "import os, signal\ndef f(x):\n    os.kill(os.getpid(), signal.SIGSTOP)\n    return 1",
           kinds=("timeout", "failed"), hangs=True),
    Attack("prints without end", "def f(x):\n    while True: print('passed' * 9999)", kinds=("timeout",), hangs=True),
    Attack("opens itself to others and outlives its warden",
           SYSCALL + "def f():\n    return libc.prctl(4, 1, 0, 0, 0) == 0 or libc.prctl(1, 0, 0, 0, 0) == 0", BREACH,
           needs=CALLS),
    Attack("signals every process",
           "import os, signal\ndef f():\n    sent = False\n    for pid in (-1, {pid}, os.getppid()):\n        try:\n"
           "            if pid: os.kill(pid, signal.SIGURG); sent = True\n        except OSError: pass\n"
           "    return sent", BREACH,
           needs=CALLS),
    Attack("lets a descriptor signal other processes",
           "import fcntl, os, socket, struct\nF_SETSIG, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP = 10, 15, 0x8901, 0x8902\n"
           "def f():\n    a, b = socket.socketpair()\n    owner, done = struct.pack('i', {pid}), []\n"
           "    for call, number, value in ((fcntl.fcntl, fcntl.F_SETOWN, {pid}), (fcntl.ioctl, FIOSETOWN, owner),\n"
           "            (fcntl.ioctl, SIOCSPGRP, owner), (fcntl.fcntl, F_SETOWN_EX, struct.pack('i', 1) + owner)):\n"
           "        try: call(a, number, value); done.append(number)\n        except OSError: pass\n"
           "    try: fcntl.fcntl(a, F_SETSIG, 23); done.append(F_SETSIG)\n    except OSError: pass\n"
           "    fcntl.fcntl(a, fcntl.F_SETFL, os.O_ASYNC)\n    b.send(b'x')\n    return done", BREACH, needs=CALLS),
    Attack("changes the mode, times and attributes of files that are not its own",
           "import os\ndef f():\n    done = []\n    for path in ({secret}, os.__file__, '/dev/null', '/dev/zero'):\n"
           "        for do in (lambda: os.chmod(path, os.stat(path).st_mode & 0o7777), lambda: os.chown(path, 0, 0),\n"
           "                   lambda: os.utime(path, (1, 1)), lambda: os.setxattr(path, 'user.x', b'')):\n"
           "            try: do(); done.append(path)\n            except OSError: pass\n    return done",
           BREACH, needs=CALLS),
    Attack("cuts off, moves and links a file of the user",
           "import os\ndef f():\n    for do in (lambda: os.truncate({secret}, 0), lambda: os.link({secret}, 'mine'),\n"
           "               lambda: os.rename({secret}, 'mine'), lambda: os.unlink({secret})):\n"
           "        try: do(); return True\n        except OSError: pass", BREACH, needs=CALLS),
    Attack("reaches for queues and semaphores of others",
           SYSCALL + "def f():\n    calls = [(number, 0, 0, 0, 0) for number in (65, 66, 69, 70, 71, 220)]\n"
           "    return [c for c in calls if libc.syscall(*c) >= 0 or ctypes.get_errno() != 1]", BREACH, needs=CALLS),
    Attack("changes the trainer's limits",
           "import resource\ndef f():\n    resource.prlimit({pid}, resource.RLIMIT_CORE, (0, 0))\n"
           "    return True", BREACH,
           needs=CALLS),
    Attack("connects to a port of the host",
           "import socket\ndef f():\n    return bool(socket.create_connection(('127.0.0.1', {port}), 5))", BREACH,
           needs=CALLS),
    Attack("connects to a Unix socket of the host",
           "import socket\ndef f():\n    s = socket.socket(socket.AF_UNIX)\n    s.connect('\\0' + {abstract})\n"
           "    return True",
           BREACH, needs=CALLS),
    Attack("asks for names on the network", "import socket\ndef f():\n    return socket.getaddrinfo('example.com', 80)",
           BREACH),
    Attack("becomes another program", "import os\ndef f():\n    os.execv('/bin/sh', ['sh', '-c', 'true'])", BREACH,
           kinds=("failed", "error")),
    Attack("writes where programs are",
           "import os, sys, sysconfig\ndef f():\n"
           "    places = [*sysconfig.get_paths().values(), {source}, '/etc', '/usr/lib',\n"
           "        os.path.dirname(os.__file__), '/tmp/..', '/root', '/dev/shm', '/var/tmp']\n"
           "    for place in places:\n        try:\n"
           "            open(os.path.join(place, {canary}), 'w').close(); return True\n"
           "        except OSError: pass", BREACH, needs=CALLS),
    Attack("changes the standard library for others",
           "import bisect\ndef f():\n    open(bisect.__file__, 'a').write('')\n    return True", BREACH, needs=CALLS),
    Attack("asks the kernel for doors",
           SYSCALL + "def f():\n"
           "    calls = dict(unshare=(272, 0x10000000), mount=(165, 0, b'/', 0, 0, 0), setns=(308, 3, 0),\n"
           "        keyctl=(250, 0, -3, 1), bpf=(321, 0, 0, 0), perf=(298, 0, 0, -1, -1, 0), io_uring=(425, 1, 0),\n"
           "        userfaultfd=(323, 0), memfd=(319, b'x', 0), shmget=(29, 0, 4096, 0o1600), personality=(135, -1))\n"
           "    return [n for n, c in calls.items() if libc.syscall(*c) >= 0]",
           BREACH, needs=CALLS),
    Attack("takes back its privileges",
           "import os\ndef f():\n"
           "    for do in (lambda: os.setuid(1), lambda: os.setgroups([0]), lambda: os.chroot('/'),\n"
           "               lambda: os.nice(-5), lambda: os.chown('.', 12345, 0)):\n        try:\n            do()\n"
           "            return True\n"
           "        except OSError: pass", BREACH, needs=CALLS),
    Attack("sends a descriptor instead of an answer",
           "import socket\ndef f(x):\n    s = socket.socket(fileno=3)\n"
           "    socket.send_fds(s, [b'\\0\\0\\0\\x02{}'], [0, 1, 2])",
           kinds=("error", "failed")),
]  # fmt: skip

LINE = (Case("2\n", "7391\n"),)
PROGRAMS = [
    Attack("a program leaves with status 0 and without output", "import os\nos._exit(0)", cases=LINE),
    Attack("a program prints the answer and fails", "print(7391)\nraise ValueError", cases=LINE, kinds=("error",)),
    Attack("a program prints without end", "while True: print('7391')", cases=LINE),
    Attack("a program closes its output and stays",
           "import os, time\nos.write(1, b'7391\\n')\nos.close(1)\ntime.sleep(60)",
           cases=LINE, kinds=("timeout",), hangs=True),
    Attack("a program leaves a thread behind that prints without end",
           "import threading\ndef work():\n    while True: print(7391)\nthreading.Thread(target=work).start()",
           cases=LINE),
    Attack("a program ends with a status that no process can have", "print(7391)\nraise SystemExit(2 ** 99 + 1)",
           cases=LINE, kinds=("error",)),
    Attack("a program never ends its end",
           "import atexit, time\nprint(7391, flush=True)\natexit.register(time.sleep, 60)", cases=LINE,
           kinds=("timeout",), hangs=True),
    Attack("a program looks for the answer in what it was sent",
           "import gc\nprint([o for o in gc.get_objects() if isinstance(o, dict) and 'output' in o][0]['output'])",
           cases=LINE, kinds=("error", "failed")),
]  # fmt: skip

ATTACKS = [*FORGED, *PROTOCOL, *SPYING, *HARM, *PROGRAMS]
