"""Reward models learn who is preferred; their loss, their figures, and what is kept beside them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import preference_pairs
import pytest
import torch
from preference_pairs import generated_pairs, reward_job
from tiny_stage import registry_with
from toys import language_model_folder

from rlkit.algorithms.reward_model import reward_model, tokenized
from rlkit.component import Component
from rlkit.config.models import CausalLMSettings
from rlkit.config.reward_models import RewardNormSettings
from rlkit.errors import ModelError, RecipeError
from rlkit.models.head_files import headless, normalization, notes
from rlkit.models.scalar_head import load_scalar_head, score_rows, text_ids
from rlkit.models.tokenizer import byte_tokenizer
from rlkit.ops.pairwise import preference_loss
from rlkit.reward_models.loss_terms import reward_norm
from rlkit.stages import train


def batch_loss(folder: Path, **settings) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Return the loss of the first eight train pairs under a fresh head, and their rewards."""
    trainer = reward_model(reward_job(folder, **settings))
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(8)])
    trainer.model.eval()
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
    chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
    return loss.item(), chosen, rejected


def test_the_loss_is_bradley_terry_with_margin_centering_smoothing_and_terms(tmp_path: Path) -> None:
    zero = torch.zeros(8)
    plain, chosen, rejected = batch_loss(tmp_path / "plain")
    assert (chosen - rejected).abs().min() > 1e-5
    assert plain == pytest.approx(preference_loss(chosen, rejected, zero).item(), abs=1e-6)
    margin, *_ = batch_loss(tmp_path / "margin", domain={"margin": 0.7})
    assert margin == pytest.approx(preference_loss(chosen, rejected, zero + 0.7).item(), abs=1e-6)
    centered, *_ = batch_loss(tmp_path / "center", center_rewards_coefficient=0.5)
    assert centered == pytest.approx(plain + 0.5 * (chosen + rejected).square().mean().item(), abs=1e-6)
    smoothed, *_ = batch_loss(tmp_path / "smooth", label_smoothing=0.2, domain={"margin": 0.7})
    x = chosen - rejected - 0.7
    flipped = torch.nn.functional.softplus(x).mean()
    assert smoothed == pytest.approx((0.8 * margin + 0.2 * flipped).item(), abs=1e-6)
    terms, *_ = batch_loss(tmp_path / "terms", loss_terms=[{"type": "reward_norm", "weight": 3.0}])
    assert terms == pytest.approx(plain + 1.5 * (chosen.square() + rejected.square()).mean().item(), abs=1e-6)


def test_the_norm_of_rewards_by_hand() -> None:
    term = reward_norm(RewardNormSettings(weight=0.5))
    chosen = torch.tensor([1.0, 2.0], requires_grad=True)
    # 0.5 * mean(1 + 9, 4 + 1) / 2 = 0.5 * 7.5 / 2
    loss = term(chosen, torch.tensor([3.0, -1.0]), torch.zeros(2))
    assert loss.item() == pytest.approx(1.875)
    loss.backward()
    assert chosen.grad.tolist() == [0.25, 0.5]  # weight * r / B


def test_a_plugins_loss_term_is_named_in_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = Component(RewardNormSettings, lambda settings: lambda chosen, rejected, margin: settings.weight * 100)
    pairs = Component(preference_pairs.PairsSettings, preference_pairs.PairsDomain)
    other = registry_with({("domain", "pairs"): pairs, ("loss_term", "reward_norm"): norm})
    monkeypatch.setattr(preference_pairs, "registry", lambda: other)
    loss, chosen, rejected = batch_loss(tmp_path, loss_terms=[{"type": "reward_norm", "weight": 1.0}])
    assert loss == pytest.approx(100 + preference_loss(chosen, rejected, torch.zeros(8)).item(), rel=1e-6)


def test_pairs_are_tokenized_as_sampled_with_their_margins() -> None:
    rows = generated_pairs(3, seed=0, margin=0.5)
    tokenizer = byte_tokenizer()
    data = tokenized(rows, tokenizer, 400, margins=True)
    expected = text_ids(tokenizer, [(rows[1].prompt, rows[1].rejected, True)], 400)[0]
    assert data[1]["rejected_ids"] == expected
    assert expected[-1] == tokenizer.eos_token_id
    assert data["margin"][:] == [0.5] * 3
    assert tokenized(rows, tokenizer, 4, margins=False)[0]["chosen_ids"] == data[0]["chosen_ids"][-4:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict]:
    """Train on separable pairs, and return the stage's model and its facts."""
    folder = tmp_path_factory.mktemp("trained")
    facts = train(reward_job(folder, train={"max_steps": 60, "evaluate_every_steps": 20}))
    return folder / "rm" / "model", facts["reward_model"]


def test_a_reward_model_learns_separable_pairs(trained) -> None:
    folder, facts = trained
    report = notes(folder)
    assert report["split"] == "test"
    assert report["accuracy"]["value"] >= 0.9
    assert report["accuracy"]["interval"][0] > report["longer_wins"]["interval"][1]
    assert 0.35 < report["longer_wins"]["value"] < 0.65  # length says nothing
    assert report["chosen"]["mean"] > report["rejected"]["mean"] + 1
    assert facts["accuracy"] == report["accuracy"]["value"]
    assert facts["head"] == report["head"] == "new"
    assert facts["pairs"] == 64


def test_the_report_is_that_of_the_saved_model(trained) -> None:
    folder, _ = trained
    assert headless(folder) is None
    loaded = load_scalar_head(CausalLMSettings(path=str(folder)))
    rows = generated_pairs(64, seed=2)

    def scores(side: str) -> np.ndarray:
        triples = [(row.prompt, getattr(row, side), True) for row in rows]
        return score_rows(loaded.model.eval(), text_ids(loaded.tokenizer, triples, 1024)).numpy()

    chosen, rejected = scores("chosen"), scores("rejected")
    report = notes(folder)
    assert report["accuracy"]["value"] == pytest.approx((chosen > rejected).mean(), abs=1e-9)
    assert report["chosen"]["mean"] == pytest.approx(chosen.mean(), abs=1e-4)
    assert report["rejected"]["quantiles"]["0.5"] == pytest.approx(np.median(rejected), abs=1e-4)
    assert normalization(folder) == (report["train"]["mean"], report["train"]["std"])
    assert report["max_tokens"] == 1024


def test_the_log_has_valid_figures_and_those_of_the_held_out_pairs(trained) -> None:
    rows = [json.loads(line) for line in (trained[0].parent.parent / "metrics.jsonl").read_text().splitlines()]
    looks = [row for row in rows if "eval_loss" in row]
    assert [row["step"] for row in looks] == [20, 40, 60]
    assert looks[-1]["eval_loss"] < looks[0]["eval_loss"]
    assert rows[-1]["held_out_accuracy"] >= 0.9


def test_valid_figures_are_exact_over_uneven_batches(tmp_path: Path) -> None:
    trainer = reward_model(reward_job(tmp_path, domain={"held_out": 13, "margin": 0.3}))
    trainer.model.requires_grad_(False)
    metrics = trainer.evaluate()
    chosen, rejected = (
        torch.cat([trainer.model(input_ids=torch.tensor([row])).logits[:, 0] for row in trainer.eval_dataset[name]])
        for name in ("chosen_ids", "rejected_ids")
    )
    assert metrics["eval_loss"] == pytest.approx(preference_loss(chosen, rejected, torch.full((13,), 0.3)).item(), 1e-5)
    assert metrics["eval_accuracy"] == pytest.approx((chosen > rejected).float().mean().item())
    assert metrics["eval_margin"] == pytest.approx((chosen - rejected).mean().item(), abs=1e-6)


def test_a_frozen_backbone_stays_and_its_head_learns(tmp_path: Path) -> None:
    trainer = reward_model(reward_job(tmp_path, freeze_backbone=True, select_by="last"))
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"score.weight"}


@pytest.mark.parametrize("adapter", [None, {"rank": 2}], ids=["whole", "lora"])
def test_the_best_checkpoint_comes_back_with_its_head(adapter: dict | None, tmp_path: Path) -> None:
    rate = {"learning_rate": 0.5, "max_steps": 6, "schedule": "constant", "warmup": 0}  # so high that it gets worse
    trainer = reward_model(reward_job(tmp_path, model={"adapter": adapter}, train=rate))
    trainer.train()
    looks = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(looks) == 3
    assert looks[-1] > min(looks)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(looks), rel=1e-4)


def test_an_adapter_is_merged_into_the_saved_model(tmp_path: Path) -> None:
    adapter = {"adapter": {"rank": 4, "dropout": 0.1}}
    trainer = reward_model(reward_job(tmp_path, model=adapter))
    assert trainer.args.disable_dropout is False
    assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.1 for m in trainer.model.modules())
    facts = train(reward_job(tmp_path / "again", model=adapter))["reward_model"]
    folder = tmp_path / "again" / "rm" / "model"
    assert headless(folder) is None
    loaded = load_scalar_head(CausalLMSettings(path=str(folder)))
    rows = generated_pairs(64, seed=2)
    chosen = score_rows(
        loaded.model.eval(), text_ids(loaded.tokenizer, [(row.prompt, row.chosen, True) for row in rows], 1024)
    )
    assert chosen.mean().item() == pytest.approx(notes(folder)["chosen"]["mean"], abs=1e-4)
    assert facts["pairs"] == 64


def test_the_best_checkpoint_is_kept_by_likelihood_or_accuracy_or_not_at_all(tmp_path: Path) -> None:
    for select_by, expected in (("loss", ("eval_loss", False)), ("accuracy", ("eval_accuracy", True))):
        args = reward_model(reward_job(tmp_path, select_by=select_by)).args
        assert (args.metric_for_best_model, args.greater_is_better, args.load_best_model_at_end) == (*expected, True)
    assert reward_model(reward_job(tmp_path, select_by="last")).args.load_best_model_at_end is False


def test_a_run_goes_on_from_its_checkpoint_to_the_same_model(tmp_path: Path) -> None:
    settings = {"select_by": "last", "train": {"max_steps": 4, "save_every_steps": 2}}
    whole = train(reward_job(tmp_path / "whole", **copy.deepcopy(settings)))["reward_model"]
    cut = copy.deepcopy(settings)
    job = reward_job(tmp_path / "cut", **cut)
    trainer = reward_model(job)
    stop_after(trainer, 2)
    trainer.train()
    again = train(reward_job(tmp_path / "cut", **copy.deepcopy(settings)))["reward_model"]
    assert again["hash"] == whole["hash"]
    further = train(reward_job(tmp_path / "cut", **copy.deepcopy(settings)))["reward_model"]  # no step too many
    assert further["hash"] == whole["hash"]


def stop_after(trainer, step: int) -> None:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= step

    trainer.add_callback(Stop())


def test_a_reward_model_starts_from_a_folder_with_a_fresh_head_or_with_its_own(tmp_path: Path, trained, capsys) -> None:
    folder = language_model_folder(tmp_path / "lm")
    fresh = reward_model(reward_job(tmp_path, model={"path": str(folder)}))
    assert f"rm: a new reward head on {folder}" in capsys.readouterr().out
    assert fresh.facts == {"head": "new", "backbone": str(folder)}
    own = reward_model(reward_job(tmp_path, model={"path": str(trained[0])}))
    assert f"rm: a loaded reward head on {trained[0]}" in capsys.readouterr().out
    assert own.evaluate()["eval_accuracy"] >= 0.9  # before any step
    assert own.facts["head"] == "loaded"


def test_settings_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.freeze_backbone is about the rows of new tokens"):
        reward_model(reward_job(tmp_path, model={"freeze_backbone": True}))
    with pytest.raises(ModelError, match=r"freeze_backbone: with model\.adapter"):
        reward_model(reward_job(tmp_path, model={"adapter": {"rank": 2}}, freeze_backbone=True))
    with pytest.raises(RecipeError, match=r"set by algorithm\.center_rewards_coefficient"):
        reward_job(tmp_path, train={"extra": {"center_rewards_coefficient": 0.1}})
