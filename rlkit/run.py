"""A recipe becomes a run directory: stages in order, finished ones skipped, interrupted ones continued."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from rlkit.config.algorithms import PolicySettings
from rlkit.errors import RunError, did_you_mean
from rlkit.events import event_manager
from rlkit.job import Job
from rlkit.plugins import Registry, load_plugins
from rlkit.recipe import LoadedRecipe, Recipe, all_settings, check_data, load_recipe, resolved_yaml
from rlkit.report.html import write_report
from rlkit.run_directory import RunDirectory, content_hash, write_atomically

logger = logging.getLogger("rlkit")


def run(
    loaded: LoadedRecipe,
    out: Path,
    *,
    from_stage: str | None = None,
    until_stage: str | None = None,
    fresh: bool = False,
    beside: Mapping[str, str] | None = None,
    checks: bool = True,
    log_level: int = logging.INFO,
) -> Path:
    """Run a recipe's stages.

    Args:
        loaded: the recipe.
        out: the run directory; what is finished in it for the same inputs is skipped. Its report is written last.
        from_stage: redo this stage and all after it.
        until_stage: stop after this stage.
        fresh: delete what an earlier call made.
        beside: further files of the run directory, by name: what else says how it was made.
        checks: print the pre-flight list before a stage trains, and stop where a line of it failed.
        log_level: the least that goes into the log.

    Raises:
        RunError: the directory holds stages with other inputs, a stage's name is wrong, or the pre-flight list fails.
        DataError: a data file, or what a stage names, is not there or is wrong.
    """
    recipe, registry = loaded.recipe, load_plugins()
    names = list(recipe.stages)
    redone, wanted = _range(names, from_stage, until_stage)
    directory, early = RunDirectory(out), _listen(log_level)
    inputs = stage_inputs(recipe, registry, directory)  # reads the data: nothing is deleted where that fails
    restart = fresh and directory.manifest_path.is_file()
    old = [] if restart else [name for name in names if name not in redone]
    done = {name for name in old if directory.finished(name, inputs[name])}
    pending = [name for name in wanted if name not in done]
    _check(loaded, pending)
    if checks:
        _look(recipe, registry, directory, pending)
    if restart:
        shutil.rmtree(out)
    for name in redone:
        directory.remove(name)
    directory.open(resolved_yaml(recipe), recipe.seed, registry.packages())
    for name, text in (beside or {}).items():
        write_atomically(out / name, text)
    _log_to(directory, early)
    with _events(recipe, registry, directory) as events:
        for name in wanted:
            if name in done:
                _say(f"{name}: finished before, skipped")
            else:
                job = Job(recipe, registry, directory, name)
                job.events = events
                _run_stage(job, inputs[name])
    _say(f"report: {write_report(out)}")
    return out


def _range(names: list[str], from_stage: str | None, until_stage: str | None) -> tuple[list[str], list[str]]:
    """Return the stages that are redone, whether wanted or not, and those that are wanted, done before or not."""
    for flag, name in (("--from", from_stage), ("--until", until_stage)):
        if name is not None and name not in names:
            raise RunError(f"{flag}: no stage is called {name!r}{did_you_mean(name, names)}")
    if from_stage and until_stage and names.index(from_stage) > names.index(until_stage):
        raise RunError(f"--until: must not come before --from {from_stage}, got {until_stage!r}; leave one out")
    redone = names[names.index(from_stage) :] if from_stage else []
    return redone, names[: names.index(until_stage) + 1 if until_stage else None]


def _check(loaded: LoadedRecipe, stages: list[str]) -> None:
    """Refuse what these stages name if it does not fit: before the first of them runs, not where it is met."""
    from rlkit.models.same_tokenizer import check_tokenizers

    check_data({"stages": {name: loaded.recipe.stages[name] for name in stages}}, loaded.written)
    check_tokenizers(loaded.recipe, stages)


def _look(recipe: Recipe, registry: Registry, directory: RunDirectory, stages: list[str]) -> None:
    """Say what the stages that will train find; nothing where none will.

    Raises:
        RunError: a line of the list failed.
    """
    from rlkit.preflight.listed import preflight, refuse

    lines = preflight(recipe, registry, directory, stages)
    if lines:
        _say("\n".join(["pre-flight", *map(str, lines)]))
    refuse(lines)


@contextmanager
def _events(recipe: Recipe, registry: Registry, directory: RunDirectory) -> Iterator[Any]:
    """Give the callbacks that the recipe lists; fire ``on_run_start`` and, always, ``on_run_end`` for them."""
    manager = event_manager(recipe, registry)
    hook = manager.hook
    hook.on_run_start(recipe=recipe, run_dir=directory.path)
    try:
        yield manager
    except BaseException as error:
        hook.on_run_end(run_dir=directory.path, error=error)
        raise
    hook.on_run_end(run_dir=directory.path, error=None)


def _run_stage(job: Job, inputs: str) -> None:
    _say(f"{job.stage}: starts")
    logger.debug("%s: inputs %s, settings %s", job.stage, inputs, job.settings.model_dump_json())
    job.run.begin(job.stage, inputs)
    started = time.monotonic()
    trains = not {"policy", "reward_model", "process_reward_model"}.isdisjoint(job.settings.makes)
    try:
        artefacts = job.engine.launch(job.run.path, job.stage) if trains and job.engine.needs_workers else execute(job)
    except BaseException as error:  # for `rlkit why`; whoever called says it on the terminal
        logger.info("%s: ended by %s: %s", job.stage, type(error).__name__, error)
        raise
    seconds = time.monotonic() - started
    job.run.finish(job.stage, inputs, artefacts, seconds)
    _say(f"{job.stage}: finished in {int(seconds) // 60}:{int(seconds) % 60:02d}")


def execute(job: Job) -> dict[str, Any]:
    """Run one stage in this process; returns its artefacts."""
    from rlkit.models.load import quiet

    quiet()
    job.engine.prepare()
    return job.registry.get("stage", job.settings.type).load()(job)


def execute_in_worker(run_dir: Path, stage: str) -> dict[str, Any]:
    """Run one stage on one rank of several; the recipe is the run directory's."""
    loaded = load_recipe(run_dir / "recipe.yaml")
    return execute(Job(loaded.recipe, load_plugins(), RunDirectory(run_dir), stage))


def stage_inputs(recipe: Recipe, registry: Registry, directory: RunDirectory) -> dict[str, str]:
    """Return a hash of everything that each stage's result depends on; the engine is not among it."""
    names = list(recipe.stages)
    shared = Job(recipe, registry, directory, names[0]).domain.inputs()
    chain = content_hash(
        recipe.seed,
        recipe.model.model_dump(mode="json"),
        recipe.domain.model_dump(mode="json"),
        shared,
        _model_files(recipe),
    )
    result = {}
    for name in names:
        stage = recipe.stages[name]
        named = [file for settings in all_settings(stage) for path in settings.files() for file in _stamps(Path(path))]
        more = [*([named] if named else []), *_watched(recipe, name)]
        chain = content_hash(chain, name, stage.model_dump(mode="json"), *more)
        result[name] = chain
    return result


def _watched(recipe: Recipe, stage: str) -> list[Any]:
    """Return the monitor's settings where they may change what a stage trains; one that warns makes no other run."""
    monitor, algorithm = recipe.monitor, getattr(recipe.stages[stage], "algorithm", None)
    changes = monitor is not None and monitor.changes_training and isinstance(algorithm, PolicySettings)
    return [monitor.model_dump(mode="json")] if monitor is not None and changes else []


def _model_files(recipe: Recipe) -> list[tuple[str, int, int]]:
    """Return name, size and time of the files of the recipe's model, and of its tokenizer where that is another."""
    named = (getattr(recipe.model, field, None) for field in ("path", "tokenizer"))
    return [stamp for path in named if path and Path(path).is_dir() for stamp in _stamps(Path(path))]


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of a file, or of the files of a folder."""
    path = path.expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def evaluate_run(run_dir: Path, overrides: Sequence[str] = (), name: str | None = None) -> Path:
    """Evaluate a finished run again, with other settings of its ``evaluate`` stage.

    Args:
        run_dir: the run.
        overrides: ``key=value`` below the evaluate stage.
        name: the folder inside the run; none: made from the overrides.

    Raises:
        RunError: the folder holds no run, or its recipe evaluates nothing.
    """
    if not (run_dir / "recipe.yaml").is_file():
        raise RunError(f"{run_dir}: no recipe.yaml here; name a run directory such as runs/minionerec_grpo")
    recipe = load_recipe(run_dir / "recipe.yaml").recipe
    stage = next((name for name, settings in recipe.stages.items() if "evaluation" in settings.produces), None)
    if stage is None:
        raise RunError(f"{run_dir}: its recipe has no evaluate stage; add one and run it")
    loaded = load_recipe(run_dir / "recipe.yaml", [f"stages.{stage}.{override}" for override in overrides])
    folder = name or "-".join([stage, *(override.replace("=", "_").replace("/", "_") for override in overrides)])
    execute(Job(loaded.recipe, load_plugins(), RunDirectory(run_dir), stage, output=folder))
    _say(f"report: {write_report(run_dir)}")
    return run_dir / folder


def _listen(level: int) -> MemoryHandler:
    """Keep what is said before there is a run directory to log into; warnings reach the terminal at once."""
    for old in [h for h in logger.handlers if isinstance(h, logging.FileHandler | MemoryHandler)]:
        logger.removeHandler(old)
        old.close()
    early = MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)
    logger.setLevel(level)
    logger.addHandler(early)
    if logging.lastResort:
        logger.addHandler(logging.lastResort)
    return early


def _log_to(directory: RunDirectory, early: MemoryHandler) -> None:
    handler = logging.FileHandler(directory.path / "logs" / "rlkit.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    early.setTarget(handler)
    early.close()  # hands everything over
    logger.removeHandler(early)
    logger.addHandler(handler)


def _say(text: str) -> None:
    logger.info(text)
    print(text, file=sys.stderr, flush=True)
