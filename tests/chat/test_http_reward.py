"""The reward ``http`` against a real server on this machine: batches, retries, time-outs, and the secret."""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from rlkit.chat.verifiers.http_reward import HttpReward, _waits
from rlkit.config.verifiers import HttpSettings
from rlkit.errors import DataError, RecipeError, TrainingError
from rlkit.policy.text_rewards import Sample

Reply = Callable[[list[dict[str, Any]]], tuple[int, Any]]
SAMPLES = [Sample(f"p{n}", "x" * n, str(n), context={"n": n}) for n in range(5)]


def lengths(samples: list[dict[str, Any]]) -> tuple[int, Any]:
    """Score by length."""
    return 200, {"scores": [len(sample["completion"]) for sample in samples]}


class Server:
    """A server whose replies a test chooses; what it was asked is kept."""

    def __init__(self) -> None:
        self.reply: Reply = lengths
        self.asked: list[list[dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.extra: dict[str, str] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                samples = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["samples"]
                server.asked.append(samples)
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, value = server.reply(samples)
                body = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in server.extra.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/score"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def close(self) -> None:
        """End it."""
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Run a server for a test."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.close()


def reward(server: Server, **values: Any) -> HttpReward:
    """Return a reward that asks the server, without long waits."""
    return HttpReward(HttpSettings(url=server.url, **{"backoff_seconds": 0.01, **values}), None)


def test_samples_go_out_in_batches_and_scores_come_back_in_order(server: Server) -> None:
    assert reward(server, batch_size=2, parallel=3).score(SAMPLES) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert sorted(len(samples) for samples in server.asked) == [1, 2, 2]
    sent = min(server.asked, key=lambda samples: samples[0]["answer"])
    assert sent[1] == {"prompt": "p1", "completion": "x", "answer": "1", "truncated": False, "context": {"n": 1}}
    assert server.headers[0]["content-type"] == "application/json"


def test_no_samples_ask_nothing(server: Server) -> None:
    assert reward(server).score([]) == []
    assert server.asked == []


def test_parts_and_missing_scores_are_told(server: Server) -> None:
    server.reply = lambda samples: (200, {"scores": [1, None], "parts": {"style": [0.5, None]}})
    first, second = reward(server).judge(SAMPLES[:2])
    assert (first.score, first.parts) == (1.0, {"style": 0.5})
    assert math.isnan(second.score)
    assert (second.error, second.parts) == ("the server gave no score", {})


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_what_may_pass_is_tried_again(server: Server, status: int) -> None:
    server.reply = lambda samples: lengths(samples) if len(server.asked) > 2 else (status, {"sorry": 1})
    assert reward(server).score(SAMPLES[:2]) == [0.0, 1.0]
    assert len(server.asked) == 3


def test_after_the_last_retry_the_batch_has_no_scores_and_the_others_keep_theirs(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.reply = lambda samples: (503, b"busy") if samples[0]["prompt"] == "p0" else lengths(samples)
    with caplog.at_level(logging.WARNING):
        outcomes = reward(server, batch_size=2, retries=2).judge(SAMPLES)
    assert [math.isnan(outcome.score) for outcome in outcomes] == [True, True, False, False, False]
    assert outcomes[0].error == "status 503: busy"
    assert sum(samples[0]["prompt"] == "p0" for samples in server.asked) == 3
    assert "2 samples have no score" in caplog.text


def test_after_a_batch_that_waited_in_vain_the_next_is_sent_once_until_one_is_answered(server: Server) -> None:
    asks = reward(server, retries=2)
    server.reply = lambda samples: (503, b"gone")
    assert [len(asks.judge(SAMPLES[:1])), len(server.asked)] == [1, 3]
    assert [len(asks.judge(SAMPLES[:1])), len(server.asked)] == [1, 4]
    server.reply = lengths
    assert asks.score(SAMPLES[:1]) == [0.0]
    server.reply = lambda samples: lengths(samples) if len(server.asked) > 6 else (503, b"gone")
    assert asks.score(SAMPLES[:1]) == [0.0]


def test_a_server_that_is_restarted_within_half_a_minute_costs_no_sample_by_default() -> None:
    waits = [wait for last, wait in _waits(HttpSettings(url="http://127.0.0.1:9/")) if not last]
    assert sum(waits) >= 30


def test_long_waits_are_announced(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlkit.chat.verifiers.http_reward.SAID_WAIT_SECONDS", 0.0)
    server.reply = lambda samples: lengths(samples) if len(server.asked) > 1 else (503, b"busy")
    with caplog.at_level(logging.WARNING):
        assert reward(server).score(SAMPLES[:1]) == [0.0]
    assert "status 503: busy; asked again in" in caplog.text


def test_the_server_may_ask_for_a_pause(server: Server) -> None:
    server.extra = {"Retry-After": "1"}
    server.reply = lambda samples: lengths(samples) if len(server.asked) > 1 else (429, {})
    started = time.monotonic()
    assert reward(server).score(SAMPLES[:1]) == [0.0]
    assert time.monotonic() - started >= 1.0


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_the_server_refuses_is_not_tried_again(server: Server, status: int) -> None:
    server.reply = lambda samples: (status, b"no such thing")
    with pytest.raises(TrainingError, match=f"status {status}: no such thing; mend the url, the secret or the server"):
        reward(server).score(SAMPLES)
    assert len(server.asked) == 1


def test_a_slow_server_runs_into_the_time_out(server: Server) -> None:
    done = threading.Event()
    server.reply = lambda samples: (200, {"scores": [1]}) if done.wait(20) else (500, {})
    started = time.monotonic()
    (outcome,) = reward(server, request_seconds=0.2, retries=1).judge(SAMPLES[:1])
    done.set()
    assert math.isnan(outcome.score)
    assert "timed out" in outcome.error
    assert time.monotonic() - started < 10


def test_nobody_at_home_is_no_score(server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        (outcome,) = HttpReward(HttpSettings(url=url, retries=1, backoff_seconds=0), None).judge(SAMPLES[:1])
        with pytest.raises(DataError, match="reward http: url: nobody answers at 127"):
            HttpSettings(url=url).check_online()
    assert math.isnan(outcome.score)
    assert "refused" in outcome.error
    HttpSettings(url=server.url).check_online()


@pytest.mark.parametrize(
    "value",
    [
        b"not json",
        b"[" * 100_000,
        {"scores": [1]},
        {"scores": [1, "2"]},
        {"scores": [1, True]},
        {"score": [1, 2]},
        b'{"scores": [1, NaN]}',
        {"scores": [1, 2], "parts": {"a": [1]}},
        {"scores": [1, 2], "parts": [1, 2]},
        7,
    ],
)
def test_replies_that_are_no_scores_end_the_run(server: Server, value: Any) -> None:
    server.reply = lambda samples: (200, value)
    with pytest.raises(TrainingError, match="mend the server"):
        reward(server).score(SAMPLES[:2])


def test_a_bare_list_is_scores_too(server: Server) -> None:
    server.reply = lambda samples: (200, [1, 2.5])
    assert reward(server).score(SAMPLES[:2]) == [1.0, 2.5]


def test_the_secret_comes_from_the_environment_and_is_stored_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SCORER_KEY", "s3cret")
    made = reward(server, auth_env="SCORER_KEY")
    made.score(SAMPLES[:1])
    assert server.headers[0]["authorization"] == "Bearer s3cret"
    reward(server, auth_env="SCORER_KEY", auth_header="X-Key", auth_scheme="").score(SAMPLES[:1])
    assert server.headers[1]["x-key"] == "s3cret"
    assert "s3cret" not in made.settings.model_dump_json() + repr(vars(made))
    server.reply = lambda samples: (503, {})
    with caplog.at_level(logging.DEBUG):
        outcomes = made.judge(SAMPLES[:1])
    assert "s3cret" not in caplog.text + repr(outcomes)


def test_a_missing_secret_is_an_error_before_anything_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCORER_KEY", raising=False)
    with pytest.raises(DataError, match="variable 'SCORER_KEY' is not set; export it first"):
        HttpSettings(url=server.url, auth_env="SCORER_KEY").check()
    with pytest.raises(RecipeError, match="variable 'SCORER_KEY' is not set"):
        reward(server, auth_env="SCORER_KEY")


def test_a_redirect_is_not_followed_and_takes_the_secret_nowhere(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCORER_KEY", "s3cret")
    server.extra = {"Location": server.url + "/elsewhere"}
    server.reply = lambda samples: (302, {})
    with pytest.raises(TrainingError, match="status 302"):
        reward(server, auth_env="SCORER_KEY").score(SAMPLES[:1])
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"url": "ftp://a/b"}, "not an address of a server"),
        ({"url": "file:///etc/hostname"}, "not an address of a server"),
        ({"url": "localhost:8000"}, "not an address of a server"),
        ({"url": "http://"}, "not an address of a server"),
        ({"url": "http://a:99999/"}, "[Pp]ort"),
        ({"url": "http://me:pass@a/"}, "name a variable in auth_env"),
        ({"url": "http://a/", "auth_env": "a b"}, "auth_env"),
        ({"url": "http://a/", "auth_header": "X: y"}, "auth_header"),
        ({"url": "http://a/", "batch_size": 0}, "batch_size"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        HttpSettings(**values)


def test_a_server_that_drips_its_headers_runs_into_the_time_out(server: Server) -> None:
    done = threading.Event()

    def drip() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            ports.append(listening.getsockname()[1])
            ready.set()
            connection, _ = listening.accept()
            with connection:
                while not done.wait(0.05):
                    connection.sendall(b"H")

    ports: list[int] = []
    ready = threading.Event()
    thread = threading.Thread(target=drip)
    thread.start()
    ready.wait(10)
    started = time.monotonic()
    settings = HttpSettings(url=f"http://127.0.0.1:{ports[0]}/", request_seconds=0.3, retries=0)
    (outcome,) = HttpReward(settings, None).judge(SAMPLES[:1])
    done.set()
    thread.join()
    assert outcome.error == "timed out: no whole reply within 0.3 seconds"
    assert time.monotonic() - started < 10


def test_a_number_too_large_for_a_score_is_said(server: Server) -> None:
    server.reply = lambda samples: (200, b'{"scores": [1' + b"0" * 400 + b"]}")
    with pytest.raises(TrainingError, match="with 1 numbers, and parts of as many, got"):
        reward(server).judge(SAMPLES[:1])


def test_a_secret_that_no_header_can_hold_is_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "one\ntwo")
    with pytest.raises(TrainingError, match="the request cannot be written; look for letters beyond ASCII") as error:
        reward(server, auth_env="TOKEN").judge(SAMPLES[:1])
    assert "two" not in str(error.value)
    assert error.value.__suppress_context__


def test_the_end_of_a_process_does_not_wait_for_requests(server: Server) -> None:
    done, asked, before = threading.Event(), threading.Event(), {*threading.enumerate()}

    def reply(samples: list[dict[str, Any]]) -> tuple[int, Any]:
        asked.set()
        done.wait(20)
        return lengths(samples)

    server.reply = reply
    call = threading.Thread(target=lambda: reward(server, batch_size=1, parallel=2).judge(SAMPLES), daemon=True)
    call.start()
    asked.wait(20)
    started = {*threading.enumerate()} - before
    assert len(started) >= 3
    assert all(thread.daemon for thread in started), "those of a pool would be waited for"
    done.set()
    call.join(20)
