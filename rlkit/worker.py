"""One rank of a stage: ``python -m rlkit.worker RUN_DIR STAGE``, started by an engine."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

from rlkit.engines.launch import error_file, result_file
from rlkit.errors import RlkitError
from rlkit.run_directory import write_atomically


def main(run_dir: Path, stage: str) -> int:
    """Run the stage on this rank; leave its artefacts, or its error, where the launcher looks."""
    _watch_parent()
    # torch's own wrappers call what torch deprecated; once per collective, that buries everything else.
    warnings.filterwarnings("ignore", message=".*is deprecated.*", category=FutureWarning, module="torch.distributed")
    from rlkit.run import execute_in_worker

    rank = int(os.environ["RANK"])
    try:
        artefacts = execute_in_worker(run_dir, stage)
        _leave()
    except RlkitError as error:
        return _report(run_dir, stage, rank, list(error.problems), error.exit_code)
    except Exception as error:  # a bug: its traceback goes to this rank's log, one line to the terminal
        trace = traceback.format_exc()
        (run_dir / "logs" / f"{stage}-rank{rank}.traceback.log").write_text(trace, encoding="utf-8")
        line = f"{type(error).__name__}: {error}; see logs/{stage}-rank{rank}.traceback.log"
        return _report(run_dir, stage, rank, [line], 1)
    if rank == 0:
        write_atomically(result_file(run_dir, stage), json.dumps(artefacts))
    return _end()


def _watch_parent() -> None:
    """End this rank when its launcher is gone, however that ended: a second call may come, to the same folder."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _report(run_dir: Path, stage: str, rank: int, problems: list[str], exit_code: int) -> int:
    report = {"problems": problems, "exit_code": exit_code}
    write_atomically(error_file(run_dir, stage, rank), json.dumps(report))
    return exit_code


def _leave() -> None:
    """End the process group in order: without it a rare exit race aborts a finished worker."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _end() -> NoReturn:
    """End this rank at once, its work done: threads of collectives may abort it while Python takes itself down."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
