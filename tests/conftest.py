"""Make ``tests/toys.py`` importable, keep the tests off the network and to built-in components; the command line."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RLKIT_PLUGINS", "")  # without the plugins that happen to be installed here
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_finish() -> None:
    """Keep the garbage collector, which every training calls, from looking at all that has been imported each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rlkit_(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command in a fresh folder and returns exit code, output and error output."""
    from rlkit.cli.main import main

    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["rlkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return command


@pytest.fixture
def runs(monkeypatch):
    """Replace the run itself by a record of how it was called."""
    import rlkit.run

    calls = []
    monkeypatch.setattr(rlkit.run, "run", lambda loaded, out, **options: calls.append((loaded, out, options)))
    return calls
