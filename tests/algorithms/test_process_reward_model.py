"""Process reward models: their loss, what they learn, what is kept beside them, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from labeled_steps import generated_steps, process_job
from preference_pairs import reward_folder, reward_job

from rlkit.algorithms.process_reward_model import Labeled, collate, labeled, process_reward_model, step_loss
from rlkit.algorithms.reward_model import reward_model
from rlkit.config.models import CausalLMSettings
from rlkit.config.process_rewards import ProcessRewardModelSettings, ProcessRewardSettings
from rlkit.errors import DataError, RecipeError
from rlkit.models.head_files import PROCESS, headless, notes
from rlkit.models.step_head import load_step_head, score_steps
from rlkit.models.tokenizer import byte_tokenizer
from rlkit.policy.text_rewards import Sample
from rlkit.recipe import recipe_from_tree
from rlkit.records import Source, StepLabels
from rlkit.reward_models.process import process_reward
from rlkit.run import run
from rlkit.stages import train

SETTINGS = ProcessRewardModelSettings()
LEARNS = {"max_steps": 300, "batch_size": 32, "learning_rate": 1e-2, "evaluate_every_steps": 100}


# ---- the loss


def test_the_loss_is_cross_entropy_per_step_also_of_probabilities() -> None:
    odds = torch.tensor([2.0, -1.0], requires_grad=True)
    loss = step_loss(odds, torch.tensor([1.0, 0.25]), torch.tensor(4.0))
    p = torch.sigmoid(odds.detach())
    by_hand = -(p[0].log() + 0.25 * p[1].log() + 0.75 * (1 - p[1]).log()) / 4
    assert loss.item() == pytest.approx(by_hand.item())
    loss.backward()
    assert odds.grad.tolist() == pytest.approx(((p - torch.tensor([1.0, 0.25])) / 4).tolist())


def test_only_the_ends_of_steps_count_and_padding_and_micro_batches_change_nothing(tmp_path: Path) -> None:
    def gradient(folder: str, **train_settings: object) -> torch.Tensor:
        trainer = process_reward_model(process_job(tmp_path / folder, train={"batch_size": 8, **train_settings}))
        loader = iter(torch.utils.data.DataLoader(
            trainer.train_dataset[:8], trainer.args.per_device_train_batch_size, collate_fn=trainer.data_collator
        ))  # fmt: skip
        batches, count = trainer.get_batch_samples(
            loader, trainer.args.gradient_accumulation_steps, torch.device("cpu")
        )
        assert count == sum(len(one.labels) for one in trainer.train_dataset[:8])
        trainer.model.eval()
        for batch in batches:
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=count).backward()
        return trainer.model.score.weight.grad

    whole = gradient("whole")
    assert whole.abs().max() > 1e-4
    assert torch.allclose(gradient("parts", micro_batch_size=2), whole, atol=1e-7)
    trainer = process_reward_model(process_job(tmp_path / "again"))
    rows = trainer.train_dataset[:8]
    total = torch.zeros(())
    for one in rows:  # against the model's logits at each step's end, one row at a time
        logits = trainer.model.eval()(input_ids=torch.tensor([one.row.ids])).logits[0, one.row.ends]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(one.labels).long(), reduction="sum")
    (total / sum(len(one.labels) for one in rows)).backward()
    assert torch.allclose(trainer.model.score.weight.grad, whole, atol=1e-6)


def test_labels_stand_where_steps_end() -> None:
    rows = [
        StepLabels("<|user|>a<|assistant|>", ("1+1", "é "), (1.0, 0.25), Source("x", 1)),
        StepLabels("<|user|>b<|assistant|>", ("no",), (0.0,), Source("x", 2)),
    ]
    found = labeled(rows, byte_tokenizer(), SETTINGS)
    batch = collate(found, pad=0)
    # three tokens of the prompt, "1+1" ends at 5, a line end at 6, the two bytes of "é" at 7 and 8
    assert batch["is_end"].nonzero().tolist() == [[0, 5], [0, 8], [1, 4]]
    assert batch["right"][batch["is_end"]].tolist() == [1.0, 0.25, 0.0]
    assert batch["attention_mask"].sum(1).tolist() == [10, 5]
    shared = Labeled(found[0].row._replace(ends=[5, 5]), [0.0, 1.0], "")
    assert collate([shared], pad=0)["right"][0, 5] == 0.0  # two steps of one token: the weaker label


# ---- what is learned


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict]:
    """Train on right and wrong additions, and return the stage's model and its facts."""
    folder = tmp_path_factory.mktemp("trained")
    facts = train(process_job(folder, train=LEARNS))
    return folder / "prm" / "model", facts["process_reward_model"]


def test_a_process_reward_model_tells_right_additions_from_wrong_ones(trained) -> None:
    folder, facts = trained
    report = notes(folder)
    assert (report["kind"], report["split"], report["separator"]) == ("process", "test", "\n")
    assert report["accuracy"]["value"] > 0.9
    assert report["accuracy"]["interval"][0] > report["majority"]
    assert report["auc"] > 0.95
    assert report["wrong_steps"]["f1"] > 0.9
    assert report["first_error"]["f1"] > 0.8
    assert report["calibration"]["expected_error"] < 0.1
    assert facts["accuracy"] == report["accuracy"]["value"]
    assert (facts["kind"], facts["head"]) == ("process", "new")


def test_the_report_is_that_of_the_saved_model(trained) -> None:
    folder, _ = trained
    assert headless(folder, PROCESS) is None
    loaded = load_step_head(CausalLMSettings(path=str(folder)))
    rows = labeled(generated_steps(64, seed=2), loaded.tokenizer, SETTINGS)
    scores = np.concatenate(score_steps(loaded.model.eval(), [one.row for one in rows]))
    labels = np.array([label for one in rows for label in one.labels])
    assert len(labels) == notes(folder)["steps"]
    assert notes(folder)["accuracy"]["value"] == pytest.approx(np.mean((scores >= 0.5) == (labels >= 0.5)), abs=1e-9)
    table = notes(folder)["calibration"]["table"]
    assert [row["steps"] for row in table] == np.histogram(scores, bins=10, range=(0, 1))[0].tolist()


def test_a_wrong_step_is_found_wherever_it_stands(trained) -> None:
    reward = process_reward(ProcessRewardSettings(path=str(trained[0]), aggregate="min"), None)
    texts = ["1+1=2\n0+1=1\n2+1=3", "1+1=2\n0+1=3\n2+1=3", "1+1=3\n0+1=1", "1+1=2\n0+1=1\n2+1=1"]
    found = reward.judge([Sample("<|user|>add 5<|assistant|>", text) for text in texts])
    wrong = [[name for name, score in outcome.parts.items() if score < 0.5] for outcome in found]
    assert wrong == [[], ["step_2"], ["step_1"], ["step_3"]]
    assert [outcome.score > 0.5 for outcome in found] == [True, False, False, False]


def test_the_log_has_valid_figures_and_those_of_the_held_out_steps(trained) -> None:
    rows = [json.loads(line) for line in (trained[0].parent.parent / "metrics.jsonl").read_text().splitlines()]
    looks = [row for row in rows if "eval_loss" in row]
    assert [row["step"] for row in looks] == [100, 200, 300]
    assert looks[-1]["eval_loss"] < looks[0]["eval_loss"]
    assert looks[-1]["eval_accuracy"] > 0.9
    assert rows[-1]["held_out_auc"] > 0.95


def test_valid_figures_are_exact_over_uneven_batches(tmp_path: Path) -> None:
    trainer = process_reward_model(process_job(tmp_path, domain={"held_out": 13}))
    metrics = trainer.evaluate()
    losses, hits = [], []
    for one in trainer.eval_dataset:
        with torch.no_grad():
            logits = trainer.model(input_ids=torch.tensor([one.row.ids])).logits[0, one.row.ends]
        labels = torch.tensor(one.labels).long()
        losses += torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist()
        hits += (logits.argmax(-1) == labels).tolist()
    assert metrics["eval_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert metrics["eval_accuracy"] == pytest.approx(np.mean(hits))


def test_a_frozen_backbone_stays_and_its_head_learns(tmp_path: Path) -> None:
    trainer = process_reward_model(process_job(tmp_path, freeze_backbone=True, select_by="last"))
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"score.weight", "score.bias"}


def test_an_adapter_is_merged_into_the_saved_model(tmp_path: Path) -> None:
    train(process_job(tmp_path, model={"adapter": {"rank": 4}}))
    folder = tmp_path / "prm" / "model"
    assert headless(folder, PROCESS) is None
    loaded = load_step_head(CausalLMSettings(path=str(folder)))
    rows = labeled(generated_steps(64, seed=2), loaded.tokenizer, SETTINGS)
    scores = np.concatenate(score_steps(loaded.model.eval(), [one.row for one in rows]))
    table = notes(folder)["calibration"]["table"]
    assert [row["steps"] for row in table] == np.histogram(scores, bins=10, range=(0, 1))[0].tolist()


def test_a_run_goes_on_from_its_checkpoint_and_a_trained_head_is_trained_on(tmp_path: Path) -> None:
    settings = {"select_by": "last", "train": {"max_steps": 4, "save_every_steps": 2}}
    whole = train(process_job(tmp_path / "whole", **copy.deepcopy(settings)))["process_reward_model"]
    trainer = process_reward_model(process_job(tmp_path / "cut", **copy.deepcopy(settings)))
    trainer.add_callback(StopAfter(2))
    trainer.train()
    again = train(process_job(tmp_path / "cut", **copy.deepcopy(settings)))["process_reward_model"]
    assert again["hash"] == whole["hash"]
    path = str(tmp_path / "whole" / "prm" / "model")
    further = process_reward_model(process_job(tmp_path / "further", model={"path": path}))
    assert further.facts["head"] == "loaded"
    assert torch.equal(further.model.score.weight, load_step_head(CausalLMSettings(path=path)).model.score.weight)


class StopAfter:
    """A callback that ends training early, after a checkpoint."""

    def __new__(cls, step: int):
        from transformers import TrainerCallback

        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step >= step:
                    control.should_save = control.should_training_stop = True

        return Stop()


# ---- what is refused


def test_steps_that_would_be_scored_otherwise_are_refused_by_line() -> None:
    rows = [
        StepLabels("p", ("one", "two\nthree"), (1.0, 0.0), Source("a.jsonl", 4)),
        StepLabels("p", ("one\n", "two"), (1.0, 0.0), Source("a.jsonl", 5)),
    ]
    with pytest.raises(DataError) as error:
        labeled(rows, byte_tokenizer(), SETTINGS)
    assert error.value.problems == (
        r"a.jsonl:4: completions[1]: holds what parts steps, '\n', so it would be scored as several; split it, or set "
        "algorithm.separator to what no step holds",
    )
    assert len(labeled(rows, byte_tokenizer(), ProcessRewardModelSettings(separator="\n\n"))) == 2


def test_labels_that_all_say_the_same_are_refused(tmp_path: Path) -> None:
    job = process_job(tmp_path)
    rows = [StepLabels("p", ("x", "y"), (1.0, 0.5), Source("a.jsonl", at)) for at in (1, 2)]
    job.domain.step_labels = lambda split: rows
    with pytest.raises(DataError, match=r"a\.jsonl: every step of the train split is right"):
        process_reward_model(job)


@pytest.mark.parametrize("kind", ["process", "preference"])
def test_checkpoints_that_nothing_looks_at_are_refused(kind: str, tmp_path: Path) -> None:
    make, build = (process_job, process_reward_model) if kind == "process" else (reward_job, reward_model)
    job = make(tmp_path, train={"evaluate_every_steps": 4, "save_every_steps": 2})
    with pytest.raises(RecipeError, match="save_every_steps: must be a multiple of evaluate_every_steps"):
        build(job)
    last = make(tmp_path / "last", select_by="last", train={"evaluate_every_steps": 4, "save_every_steps": 2})
    assert build(last).args.save_steps == 2


CHAT = {
    "type": "chat",
    "steps": {"type": "arithmetic", "wrong": 0.5, "rows": 64, "held_out": 8, "levels": [{"terms": 3}]},
}


def tree(reward: dict) -> dict:
    """Return the recipe of a process reward model and PPO by a reward."""
    settings = {"batch_size": 4, "max_steps": 2, "report_to": [], "evaluate_every_steps": 2, "log_every_steps": 1}
    ppo = {
        "type": "ppo",
        "rewards": [reward],
        "rollout": {"type": "sample", "max_completion_tokens": 12},
        "validate_on": {"prompts": 4},
    }
    return {
        "name": "process",
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 1},
        "domain": CHAT,
        "stages": {
            "prm": {"algorithm": {"type": "process_reward_model"}, "train": settings},
            "ppo": {"algorithm": ppo, "train": settings},
        },
        "engine": {"threads": 1},
    }


def test_ppo_learns_from_a_process_reward_of_the_same_recipe(tmp_path: Path) -> None:
    run(recipe_from_tree(tree({"type": "process", "credit": "steps", "aggregate": "mean"})), tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["stages"]["prm"]["artefacts"]["process_reward_model"]["kind"] == "process"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("reward/process" in row for row in rows if row["stage"] == "ppo")


def test_a_recipe_that_takes_one_kind_for_the_other_is_refused() -> None:
    with pytest.raises(RecipeError, match="must be a stage that trains a reward_model, got 'prm'"):
        recipe_from_tree(tree({"type": "model", "stage": "prm"}))
    other = tree({"type": "process", "stage": "prm"})
    recipe_from_tree(other)
    other["domain"] = {"type": "chat"}
    other["stages"]["prm"]["algorithm"] = {"type": "reward_model"}
    with pytest.raises(RecipeError, match="must be a stage that trains a process_reward_model, got 'prm'"):
        recipe_from_tree(other)


# ---- the command line


TINY = ("model.hidden_size=32", "model.intermediate_size=64", "model.layers=1", "train.max_steps=2", "engine.threads=1")


def test_the_verb_trains_on_a_file_and_what_it_trained_scores_rows(rlkit_, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n} + 1 + 1", "completions": [f"{n} + 1 = {n + 1}", "so 9"], "labels": [True, False]}
        for n in range(40)
    ]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said, err = rlkit_(
        "train-rm", "--kind", "process", "--data", "steps.jsonl", "train.batch_size=8", "train.report_to=[]", *TINY
    )
    assert code == 0, err
    assert "process reward model on" in said
    model = tmp_path / "runs" / "train-rm-process" / "process_reward_model" / "model"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1 + 1 + 1", "completion": "1 + 1 = 2\nso 3"}) + "\n")
    scored = ("rewards", "score", "process", "--data", "rows.jsonl", "--out", "out.jsonl")
    assert rlkit_(*scored, f"model={model}")[0] == 0
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert list(row["parts"]) == ["step_1", "step_2"]
    assert row["score"] == pytest.approx(row["parts"]["step_1"] * row["parts"]["step_2"])
    code, _, err = rlkit_("rewards", "score", "model", "--data", "rows.jsonl", "--out", "out2.jsonl", f"model={model}")
    assert code != 0
    assert "it is a process reward model" in err
    outcome = reward_folder(tmp_path / "rm")
    code, _, err = rlkit_(*scored[:-1], "out3.jsonl", f"path={outcome}")
    assert code != 0
    assert "it is an outcome reward model" in err


def test_the_verb_names_bad_rows_by_line(rlkit_, tmp_path: Path) -> None:
    good = {"prompt": "p", "completions": ["x"], "labels": [True]}
    rows = [good, {**good, "labels": [True, False]}, {**good, "completions": [""]}]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = rlkit_("train-rm", "--kind", "process", "--data", "steps.jsonl")
    assert code != 0
    assert "steps.jsonl:2: labels: one for each step is needed" in err
    assert "steps.jsonl:3: completions[0]: empty" in err


def test_the_verb_without_data_generates_arithmetic_and_says_so(rlkit_) -> None:
    code, said, err = rlkit_("train-rm", "--kind", "process", "--dry-run")
    assert code == 0
    assert "data: generated arithmetic (choose yours with --data)" in err
    assert "type: process_reward_model" in said
    assert "reward_model" in rlkit_("train-rm", "--dry-run")[1]
