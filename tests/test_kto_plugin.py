"""The third party's plugin: KTO, found by its entry point, in under 80 lines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toys import ROOT

from rlkit.errors import RecipeError
from rlkit.job import Job
from rlkit.plugin_kit.packages import find_package, findable
from rlkit.plugin_kit.scaffold import write_package
from rlkit.plugins import load_plugins
from rlkit.recipe import recipe_from_tree
from rlkit.run import run
from rlkit.run_directory import RunDirectory

PLUGIN = ROOT / "plugins" / "rlkit-kto"


@pytest.fixture(scope="module", autouse=True)
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let rlkit find the plugin as an installer would, and a domain of additions with liked and disliked answers."""
    domain = find_package(write_package("sums", "domain", tmp_path_factory.mktemp("sums") / "package"))
    with findable(find_package(PLUGIN), domain):
        yield


def recipe(
    algorithm: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **train: Any
) -> dict[str, Any]:
    stage = {
        "algorithm": {"type": "kto", **(algorithm or {})},
        "train": {"batch_size": 16, "max_steps": 4, "learning_rate": 3e-3, "report_to": [], **train},
    }
    return {
        "name": "feedback",
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, **(model or {})},
        "domain": {"type": "sums"},
        "stages": {"kto": stage},
        "engine": {"threads": 1},
    }


def kto_job(folder: Path, *args: Any, **train: Any) -> Job:
    loaded = recipe_from_tree(recipe(*args, **train))
    directory = RunDirectory(folder)
    directory.open("", 0, {})
    job = Job(loaded.recipe, load_plugins(), directory, "kto")
    job.engine.prepare()
    return job


def trainer(folder: Path, *args: Any, **train: Any) -> Any:
    return load_plugins().get("algorithm", "kto").load()(kto_job(folder, *args, **train))


def test_the_module_has_fewer_than_80_lines() -> None:
    assert len((PLUGIN / "rlkit_kto.py").read_text(encoding="utf-8").splitlines()) < 80


def test_it_is_found_by_its_entry_point() -> None:
    registry = load_plugins()
    assert registry.origin("algorithm", "kto") == ("rlkit-kto", "0.1.0")
    assert registry.get("algorithm", "kto").settings.consumes == ("Feedback",)


def test_finding_it_imports_no_torch() -> None:
    code = "import sys, rlkit_kto; print([name for name in ('torch', 'trl', 'transformers') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PLUGIN), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "[]\n"


def test_a_run_prefers_liked_answers_on_held_out_prompts_and_saves_its_model(tmp_path: Path) -> None:
    tree = recipe({"beta": 0.5}, max_steps=60, batch_size=32, evaluate_every_steps=20)
    out = run(recipe_from_tree(tree), tmp_path / "run")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    margins = [row["eval_rewards/margins"] for row in rows if "eval_rewards/margins" in row]
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert margins[-1] > 0.1  # 0 for the starting model
    assert losses[-1] < 0.49  # 1 - sigmoid(0) for the starting model
    assert (out / "kto" / "model" / "model.safetensors").is_file()
    assert "policy" in json.loads((out / "manifest.json").read_text())["stages"]["kto"]["artefacts"]


def test_each_prompt_meets_its_neighbors_answer_in_the_kl_estimate(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    rows = [made.train_dataset[index] for index in (3, 8, 5)]
    batch = made.data_collator(rows)
    for place, row in enumerate(rows):
        wanted = row["prompt_ids"] + rows[place - 1]["completion_ids"]
        assert batch["KL_input_ids"][place][: len(wanted)].tolist() == wanted
    assert batch["label"].tolist() == [row["label"] for row in rows]


def test_the_loss_is_that_of_the_paper(tmp_path: Path) -> None:
    made = trainer(tmp_path, {"beta": 0.4, "desirable_weight": 1.2})
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    rows = [made.train_dataset[index] for index in range(6)]

    def ratio(prompt: list[int], completion: list[int]) -> float:
        ids = torch.tensor([prompt + completion])
        found = []
        for model in (made.model, made.ref_model):
            logits = type(model).forward(model, input_ids=ids).logits[0, :-1]
            picked = F.log_softmax(logits, -1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
            found.append(float(picked[len(prompt) - 1 :].sum()))
        return found[0] - found[1]

    with torch.no_grad():
        kl = sum(ratio(row["prompt_ids"], rows[place - 1]["completion_ids"]) for place, row in enumerate(rows)) / 6
        kl = max(kl, 0.0)
        losses = []
        for row in rows:
            sign = 1 if row["label"] else -1
            value = torch.sigmoid(torch.tensor(0.4 * sign * (ratio(row["prompt_ids"], row["completion_ids"]) - kl)))
            losses.append((1.2 if row["label"] else 1.0) * (1 - float(value)))
        found = float(made.compute_loss(made.model, made.data_collator(rows)))
    assert found == pytest.approx(sum(losses) / 6, abs=1e-5)
    assert abs(found - 0.55) > 1e-3  # (1.2 * .5 + .5) / 2: what an untrained policy has


def test_epochs_are_whole_batches_in_orders_of_their_own(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    loader = made.get_train_dataloader()
    assert len(loader) == len(made.train_dataset) // 16
    seen = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        seen.append([batch["input_ids"].tolist() for batch in loader])
    assert seen[0] != seen[1]


def test_a_stage_that_goes_on_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    adapter = {"adapter": {"rank": 4}}
    train = {"max_steps": 6, "evaluate_every_steps": 3, "keep_checkpoints": 3}
    whole, resumed = (trainer(tmp_path / name, {}, adapter, **train) for name in ("a", "b"))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "kto" / "checkpoints" / "checkpoint-3"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("train", [{"micro_batch_size": 1}, {"batch_size": 1}])
def test_a_batch_without_neighbors_is_refused(train: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stages\.kto\.train\.micro_batch_size: kto compares neighbors, got 1"):
        trainer(tmp_path, **train)


def test_no_valid_row_is_looked_at_without_a_neighbor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = kto_job(tmp_path, micro_batch_size=8)
    given = job.domain.feedback
    monkeypatch.setattr(job.domain, "feedback", lambda split: given("train")[: 17 if split == "valid" else None])
    made = load_plugins().get("algorithm", "kto").load()(job)
    sizes = [len(batch["label"]) for batch in made.get_eval_dataloader()]
    assert sizes == [9, 8]  # by eights the last of the 17 would stand alone


def test_checkpoints_that_nothing_looks_at_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stages\.kto\.train\.save_every_steps: must be a multiple of"):
        trainer(tmp_path, evaluate_every_steps=2, save_every_steps=3)


def test_its_settings_are_checked_like_built_in_ones() -> None:
    with pytest.raises(RecipeError) as error:
        recipe_from_tree(recipe({"beta": 0, "betta": 1}, extra={"loss_type": "kto"}), source="here")
    problems = "\n".join(error.value.problems)
    assert "here: stages.kto.algorithm.beta: must be > 0, got 0" in problems
    assert "here: stages.kto.algorithm.betta: no such setting; did you mean 'beta'?" in problems
    assert "here: stages.kto.train.extra.loss_type: set by algorithm.loss; leave it out here" in problems


def test_pip_installs_it_and_rlkit_finds_it(tmp_path: Path) -> None:
    source = shutil.copytree(PLUGIN, tmp_path / "rlkit-kto")  # pip builds beside the source
    build = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    target = ["--target", str(tmp_path / "site")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *build, *target, str(source)], capture_output=True, text=True
    )
    if done.returncode and "setuptools" in done.stderr + done.stdout:
        pytest.skip("no setuptools to build with")
    assert done.returncode == 0, done.stderr
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}
    environment["RLKIT_PLUGINS"] = "rlkit-kto"
    listed = subprocess.run(
        [sys.executable, "-m", "rlkit", "plugins", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    row = {"kind": "algorithm", "name": "kto", "package": "rlkit-kto", "version": "0.1.0"}
    assert row in json.loads(listed.stdout)
