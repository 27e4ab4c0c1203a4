"""Start a stage's workers, and bring home what they made, or the one error that stopped them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkit.errors import TrainingError

POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0
"""How long the other workers may take to end after one failed, before they are killed."""


def result_file(run_dir: Path, stage: str) -> Path:
    """Return where rank 0 leaves the stage's artefacts."""
    return run_dir / stage / "worker-result.json"


def error_file(run_dir: Path, stage: str, rank: int) -> Path:
    """Return where a rank leaves its error."""
    return run_dir / stage / f"worker-error-{rank}.json"


def launch_workers(
    run_dir: Path, stage: str, processes: int, device: str, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Run a stage in worker processes on this machine.

    Rank 0 writes to the terminal; the others write to ``logs/STAGE-rankN.log``.

    Returns:
        The artefacts that rank 0 reports.

    Raises:
        TrainingError: a worker failed; the message names its rank.
    """
    for rank in range(processes):
        error_file(run_dir, stage, rank).unlink(missing_ok=True)
    result_file(run_dir, stage).unlink(missing_ok=True)
    port = _free_port()
    workers = [_start(run_dir, stage, rank, processes, port, device, environment) for rank in range(processes)]
    try:
        failed = _wait(workers)
    finally:
        _stop(workers)
    _raise_first_error(run_dir, stage, failed, processes)
    result = result_file(run_dir, stage)
    artefacts = json.loads(result.read_text(encoding="utf-8"))
    result.unlink()
    return artefacts


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(
    run_dir: Path, stage: str, rank: int, processes: int, port: int, device: str, environment: Mapping[str, str]
) -> subprocess.Popen:
    variables = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **environment,
    }
    if device == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
        variables.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    command = [sys.executable, "-m", "rlkit.worker", str(run_dir), stage]
    if rank == 0:
        return subprocess.Popen(command, env=variables)
    with (run_dir / "logs" / f"{stage}-rank{rank}.log").open("w") as log:
        return subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)


def _wait(workers: list[subprocess.Popen]) -> dict[int, int]:
    """Wait until all are done or one fails; return the exit codes of those that failed by themselves, by rank."""
    while True:
        codes = [worker.poll() for worker in workers]
        failed = {rank: code for rank, code in enumerate(codes) if code}
        if failed or None not in codes:
            return failed
        time.sleep(POLL_SECONDS)


def _stop(workers: list[subprocess.Popen]) -> None:
    running = [worker for worker in workers if worker.poll() is None]
    for worker in running:
        worker.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in running:
        try:
            worker.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _raise_first_error(run_dir: Path, stage: str, failed: Mapping[int, int], processes: int) -> None:
    """Raise the error that came first: the others are mostly its consequences."""
    reports = []
    for rank in range(processes):
        path = error_file(run_dir, stage, rank)
        if path.is_file():
            reports.append((path.stat().st_mtime_ns, rank, json.loads(path.read_text(encoding="utf-8"))))
    if reports:
        _, rank, report = min(reports)
        error = TrainingError(*(f"{stage}: rank {rank}: {line}" for line in report["problems"]))
        error.exit_code = report["exit_code"]
        raise error
    if failed:
        rank, code = next(iter(failed.items()))
        where = "above" if rank == 0 else f"in {run_dir / 'logs' / f'{stage}-rank{rank}.log'}"
        raise TrainingError(f"{stage}: rank {rank}: ended with exit code {code}; its output is {where}")
