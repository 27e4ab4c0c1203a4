"""``rlkit chat`` as a user meets it: through a pipe, on a terminal, and with what is no model."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toys import tiny_model

import rlkit.cli.chat
from rlkit.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny model."""
    path = tmp_path_factory.mktemp("model")
    loaded = tiny_model()
    loaded.model.save_pretrained(path)
    loaded.tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> Callable:
    """Return a function that pipes text into the verb and returns exit code, output and error output."""

    def command(text: str, *arguments: str, model: Path | str = folder) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlkit", "chat", str(model), "--max-tokens", "4", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return command


def test_every_line_of_a_pipe_is_a_turn_and_only_answers_are_printed(chat: Callable) -> None:
    code, out, err = chat("Hi\n\nAnd?\n", "--temperature", "0")
    assert (code, err) == (0, "")
    first, second = out.split("\n")[:2]
    assert out == f"{first}\n{second}\n"
    assert chat("Hi\n", "--temperature", "0")[1] == f"{first}\n"


def test_reset_forgets_and_exit_ends(chat: Callable) -> None:
    once = chat("Hi\n", "--temperature", "0")[1]
    code, out, err = chat("Hi\n/reset\nHi\n/exit\nHi\n", "--temperature", "0")
    assert (code, out) == (0, once * 2)
    assert err == "[the conversation is forgotten]\n"


def test_a_seed_and_a_system_message_change_what_is_said(chat: Callable) -> None:
    said = [chat("Hi\n", "--temperature", "1", "--top-p", "1", "--seed", seed)[1] for seed in ("1", "1", "2")]
    assert said[0] == said[1] != said[2]
    assert chat("Hi\n", "--seed", "1", "--system", "Shout.")[1] != chat("Hi\n", "--seed", "1")[1]


def test_a_message_that_is_too_long_ends_a_pipe_with_an_error(chat: Callable) -> None:
    code, out, err = chat("x" * 5000 + "\n")
    assert (code, out) == (2, "")
    assert err.startswith("error: message: 5,002 tokens, but the model has room for 4,096")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--temperature", "-1"), "Invalid value for '--temperature'"),
        (("--top-p", "0"), "Invalid value for '--top-p'"),
        (("--device", "tpu"), "Invalid value for '--device'"),
    ],
)
def test_values_out_of_range_are_refused(chat: Callable, arguments: tuple[str, ...], problem: str) -> None:
    code, out, err = chat("Hi\n", *arguments)
    assert (code, out) == (2, "")
    assert problem in err


def test_what_is_no_model_is_a_line_without_a_traceback(chat: Callable, tmp_path: Path) -> None:
    code, out, err = chat("Hi\n", model=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path}: holds no model, got an empty folder; name the folder of")
    assert err.count("\n") == 1


# ---- on a terminal


class Terminal(io.StringIO):
    """A standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_ctrl_c_ends_the_answer_and_ctrl_d_the_conversation(
    chat: Callable, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    import rlkit.chat.converse as converse

    def interrupted(*arguments: object, **options: object) -> Iterator[int]:
        yield from list(stream(*arguments, **options))[:1]
        raise KeyboardInterrupt

    stream = converse.stream_tokens
    turns = iter(["Hi", KeyboardInterrupt(), "And?", EOFError()])

    def read(prompt: str) -> str:
        turn = next(turns)
        if isinstance(turn, BaseException):
            raise turn
        monkeypatch.setattr(converse, "stream_tokens", interrupted if turn == "Hi" else stream)
        return turn

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(io, "StringIO", Terminal)
    code, out, err = chat("", "--temperature", "0")
    assert code == 0
    notes = err.splitlines()
    assert notes == [f"[{folder}]", f"[{rlkit.cli.chat.HELP}]", "[stopped]", f"[{rlkit.cli.chat.HELP}]"]
    first, second = [line for line in out.splitlines() if line.startswith("model: ")]
    assert second.removeprefix("model: ") == first.removeprefix("model: ") * 4, "one token of four"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_a_real_terminal_streams_and_survives_ctrl_c(folder: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rlkit", "chat", str(folder), "--max-tokens", "3000", "--temperature", "2"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = read_until(ours, b"you: ")
    os.write(ours, b"Hi\n")
    seen += read_until(ours, b"model: ") + os.read(ours, 64)  # something of the answer
    os.killpg(process.pid, signal.SIGINT)
    seen += read_until(ours, b"you: ")
    os.write(ours, b"\x04")
    assert process.wait(20) == 0
    assert b"[stopped]" in seen
    os.close(ours)


def read_until(terminal: int, end: bytes, seconds: float = 60) -> bytes:
    """Read until something is written."""
    seen, stop = b"", time.monotonic() + seconds
    while end not in seen:
        assert time.monotonic() < stop, seen
        seen += os.read(terminal, 1024)
    return seen
