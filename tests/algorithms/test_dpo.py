"""DPO: TRL's losses on our tokens, the reference in its forms, and stages that go on where they were."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toys import tiny_model

from rlkit.algorithms.dpo import PreferenceTrainer, _tokenized, dpo
from rlkit.algorithms.offline import fit
from rlkit.config.preferences import DPOSettings
from rlkit.errors import DataError, RecipeError
from rlkit.job import Job
from rlkit.plugin_kit.packages import find_package, findable
from rlkit.plugin_kit.scaffold import write_package
from rlkit.plugins import load_plugins
from rlkit.policy.sampler import encode_prompts
from rlkit.recipe import recipe_from_tree
from rlkit.records import Preference, Prompt, Source
from rlkit.run import run
from rlkit.run_directory import RunDirectory

HERE = Source("pairs.jsonl", 3)


@pytest.fixture(scope="module", autouse=True)
def sums(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install a domain of additions: 90 pairs to train on, and 10 others."""
    with findable(find_package(write_package("sums", "domain", tmp_path_factory.mktemp("sums") / "package"))):
        yield


def recipe(algorithm: dict[str, Any], train: dict[str, Any], **model: Any) -> dict[str, Any]:
    stage = {
        "algorithm": {"type": "dpo", **algorithm},
        "train": {"batch_size": 16, "max_steps": 4, "learning_rate": 3e-3, "report_to": [], **train},
    }
    return {
        "name": "pairs",
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, **model},
        "domain": {"type": "sums"},
        "stages": {"dpo": stage},
        "engine": {"threads": 1},
    }


def trainer(folder: Path, algorithm: dict[str, Any] | None = None, model: Any = None, **train: Any) -> Any:
    """Return the trainer of a stage on additions."""
    loaded = recipe_from_tree(recipe(algorithm or {}, train, **(model or {})))
    directory = RunDirectory(folder)
    directory.open("", 0, {})
    job = Job(loaded.recipe, load_plugins(), directory, "dpo")
    job.engine.prepare()
    return dpo(job)


def batch(made: PreferenceTrainer, rows: int = 8) -> Any:
    return made.data_collator([made.train_dataset[index] for index in range(rows)])


def completion_logprobs(model: Any, made: PreferenceTrainer, name: str, rows: int = 8) -> list[Tensor]:
    """Return each completion's token log-probs, one row at a time, by the definition."""
    found = []
    for index in range(rows):
        row = made.train_dataset[index]
        ids = torch.tensor([row["prompt_ids"] + row[f"{name}_ids"]])
        logits = type(model).forward(model, input_ids=ids).logits[0, :-1]
        picked = F.log_softmax(logits, -1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        found.append(picked[len(row["prompt_ids"]) - 1 :])
    return found


def sums_of(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.sum() for part in parts])


def disturb(model: Any, size: float = 0.05) -> None:
    """Move the trained weights, so that policy and reference differ."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def loss_of(made: PreferenceTrainer) -> float:
    with torch.no_grad():
        return float(made.compute_loss(made.model, batch(made)))


def losses(made: PreferenceTrainer) -> list[float]:
    return [row["loss"] for row in made.state.log_history if "loss" in row]


# ---- losses


def test_at_the_start_the_loss_is_log_2(tmp_path: Path) -> None:
    # policy and reference are the same, so every difference is 0 and -log sigmoid(0) = log 2
    assert loss_of(trainer(tmp_path)) == pytest.approx(math.log(2), abs=1e-6)


def test_the_sigmoid_loss_is_that_of_the_paper(tmp_path: Path) -> None:
    made = trainer(tmp_path, {"beta": 0.3})
    disturb(made.model)
    with torch.no_grad():
        ratios = [
            sums_of(completion_logprobs(made.model, made, name))
            - sums_of(completion_logprobs(made.ref_model, made, name))
            for name in ("chosen", "rejected")
        ]
    expected = -torch.log(1 / (1 + torch.exp(-0.3 * (ratios[0] - ratios[1])))).mean()
    assert abs(float(expected) - math.log(2)) > 0.01
    assert loss_of(made) == pytest.approx(float(expected), abs=1e-5)


def test_without_a_reference_the_log_probs_themselves_are_compared(tmp_path: Path) -> None:
    made = trainer(tmp_path, {"reference_free": True})
    with torch.no_grad():
        chosen, rejected = (sums_of(completion_logprobs(made.model, made, name)) for name in ("chosen", "rejected"))
    assert made.ref_model is None
    assert loss_of(made) == pytest.approx(float(-F.logsigmoid(0.1 * (chosen - rejected)).mean()), abs=1e-5)


def test_the_sft_term_adds_its_weight_times_the_likelihood_of_the_chosen(tmp_path: Path) -> None:
    plain, weighted = trainer(tmp_path / "a"), trainer(tmp_path / "b", {"sft_weight": 0.25})
    for made in (plain, weighted):
        disturb(made.model)
    with torch.no_grad():
        tokens = torch.cat(completion_logprobs(plain.model, plain, "chosen"))
    assert loss_of(weighted) - loss_of(plain) == pytest.approx(-0.25 * float(tokens.mean()), abs=1e-5)


def test_a_mix_of_losses_is_their_weighted_sum(tmp_path: Path) -> None:
    alone = {}
    for name in ("sigmoid", "bco_pair"):
        made = trainer(tmp_path / name, {"loss": name})
        disturb(made.model)
        alone[name] = loss_of(made)
    mixed = trainer(tmp_path / "mixed", {"loss": {"sigmoid": 0.8, "bco_pair": 0.2}})
    disturb(mixed.model)
    assert loss_of(mixed) == pytest.approx(0.8 * alone["sigmoid"] + 0.2 * alone["bco_pair"], abs=1e-6)


@pytest.mark.parametrize("loss", DPOSettings.model_fields["loss"].annotation.__args__[0].__args__)
def test_every_loss_that_can_be_named_is_one_of_trls(loss: str, tmp_path: Path) -> None:
    settings = {"loss": loss, "label_smoothing": 0.001 if loss == "exo_pair" else 0.0}
    made = trainer(tmp_path, settings)
    disturb(made.model)
    made.compute_loss(made.model, batch(made)).backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in made.model.parameters())


# ---- the reference


def test_precomputed_reference_log_probs_train_as_those_computed_on_the_fly(tmp_path: Path) -> None:
    fly, precomputed = (
        trainer(tmp_path / "a", log_every_steps=1),
        trainer(tmp_path / "b", {"precompute_reference": True}, log_every_steps=1),
    )
    assert precomputed.ref_model is None
    for made in (fly, precomputed):
        made.train()
    assert losses(fly) == pytest.approx(losses(precomputed), abs=1e-5)
    assert len(set(losses(fly))) == 3  # the first step of warm-up moves nothing


def test_under_lora_the_model_without_its_adapter_is_the_reference(tmp_path: Path) -> None:
    made = trainer(tmp_path, model={"adapter": {"rank": 4, "dropout": 0.1}})
    assert made.ref_model is None
    assert list(made.model.peft_config) == ["default"]
    disturb(made.model)
    base = made.model.get_base_model()
    made.model.train()  # dropout is off all the same
    with torch.no_grad():
        with made.model.disable_adapter():
            before = [sums_of(completion_logprobs(base, made, name)) for name in ("chosen", "rejected")]
        after = [sums_of(completion_logprobs(base, made, name)) for name in ("chosen", "rejected")]
    difference = (after[0] - before[0]) - (after[1] - before[1])
    assert difference.abs().min() > 1e-4
    assert loss_of(made) == pytest.approx(float(-F.logsigmoid(0.1 * difference).mean()), abs=1e-5)


def test_a_reference_that_is_synchronized_follows_the_policy(tmp_path: Path) -> None:
    sync = {"reference_sync": {"mix": 0.5, "every_steps": 4}, "select_by": "last"}
    made = trainer(tmp_path, sync)
    before = [parameter.clone() for parameter in made.ref_model.parameters()]
    made.train()
    for start, now, policy in zip(before, made.ref_model.parameters(), made.model.parameters()):
        torch.testing.assert_close(now, 0.5 * start + 0.5 * policy)
    assert any(not torch.equal(start, now) for start, now in zip(before, made.ref_model.parameters()))


# ---- training


def test_a_stage_raises_the_margin_of_held_out_pairs_and_keeps_its_best_model(tmp_path: Path) -> None:
    train = {"max_steps": 60, "learning_rate": 3e-3, "evaluate_every_steps": 20, "keep_checkpoints": 1}
    algorithm = {"beta": 0.5, "select_by": "margin"}
    out = run(recipe_from_tree(recipe(algorithm, train)), tmp_path / "run")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    margins = {row["step"]: row["eval_rewards/margins"] for row in rows if "eval_rewards/margins" in row}
    best = max(margins, key=lambda step: margins[step])
    assert margins[best] > 0.3
    assert f"checkpoint-{best}" in {path.name for path in (out / "dpo" / "checkpoints").iterdir()}
    manifest = json.loads((out / "manifest.json").read_text())
    assert "policy" in manifest["stages"]["dpo"]["artefacts"]
    assert (out / "dpo" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("algorithm", "model"),
    [
        ({}, {}),
        ({"reference_sync": {"every_steps": 3}, "select_by": "last"}, {}),
        ({"precompute_reference": True}, {"adapter": {"rank": 4}}),
    ],
    ids=["plain", "moving reference", "adapter"],
)
def test_a_stage_that_goes_on_ends_as_one_that_never_stopped(algorithm: Any, model: Any, tmp_path: Path) -> None:
    train = {"max_steps": 8, "evaluate_every_steps": 4, "log_every_steps": 1, "keep_checkpoints": 5}
    whole = trainer(tmp_path / "a", algorithm, model, **train)
    whole.train()
    resumed = trainer(tmp_path / "b", algorithm, model, **train)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "dpo" / "checkpoints" / "checkpoint-4"))
    assert losses(resumed)[-4:] == losses(whole)[-4:]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_stage_that_goes_on_from_its_last_step_takes_no_further_one(tmp_path: Path) -> None:
    made = trainer(tmp_path / "a")
    made.train()
    again = trainer(tmp_path / "b")
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "dpo" / "checkpoints" / "checkpoint-4"))
    assert again.state.global_step == 4
    for one, other in zip(made.model.parameters(), again.model.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_an_epoch_is_whole_batches(tmp_path: Path) -> None:
    made = trainer(tmp_path, micro_batch_size=4)
    assert len(made.train_dataset) == 90
    assert len(made.get_train_dataloader()) == 90 // 16 * 4
    assert made.args.gradient_accumulation_steps == 4


def test_early_stopping_needs_something_to_wait_for(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="early_stopping_patience: there is no metric"):
        trainer(tmp_path, {"select_by": "last"}, early_stopping_patience=2)
    callbacks = trainer(tmp_path, early_stopping_patience=2).callback_handler.callbacks
    assert "EarlyStoppingCallback" in {type(callback).__name__ for callback in callbacks}


# ---- tokens and data


def test_pairs_hold_the_tokens_of_sampling_and_one_end_each() -> None:
    tokenizer = tiny_model().tokenizer
    pair = Preference("<|user|>2+3?<|assistant|>", "5", "6 or so", HERE)
    row = _tokenized([pair], tokenizer, DPOSettings())[0]
    sampled = encode_prompts(tokenizer, [Prompt("key", pair.prompt, "", HERE)], "cpu")[0][0].tolist()
    assert row["prompt_ids"] == sampled
    for name in ("chosen", "rejected"):
        text = tokenizer(getattr(pair, name), add_special_tokens=False).input_ids
        assert row[f"{name}_ids"] == [*text, tokenizer.eos_token_id]


def test_a_long_prompt_loses_its_beginning_and_a_long_completion_its_end() -> None:
    assert fit([1, 2, 3, 4], [[5, 6], [7]], 8) == ([1, 2, 3, 4], [[5, 6], [7]])
    assert fit([1, 2, 3, 4], [[5, 6, 7], [8]], 5) == ([3, 4], [[5, 6, 7], [8]])
    assert fit([1, 2, 3], [[5, 6, 7, 8, 9], [9]], 4) == ([3], [[5, 6, 7], [9]])


def test_pairs_that_differ_only_beyond_the_limit_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    pairs = [Preference("?", "a" * 20, "a" * 20 + "b", HERE), Preference("?", "a", "b", HERE)]
    with caplog.at_level(logging.WARNING, "rlkit"):
        _tokenized(pairs, tiny_model().tokenizer, DPOSettings(max_tokens=8))
    assert "1 of 2 pairs differ only after max_tokens 8" in caplog.text


def test_pairs_without_a_preference_are_refused_by_file_and_line() -> None:
    pairs = [Preference("?", "a", "a", HERE), Preference("", "a", "b", Source("pairs.jsonl", 7))]
    with pytest.raises(DataError) as error:
        _tokenized(pairs, tiny_model().tokenizer, DPOSettings())
    assert error.value.problems == (
        "pairs.jsonl:3: chosen and rejected are the same, got 'a'; delete the row",
        "pairs.jsonl:7: prompt: empty, got ''; write it, or delete the row",
    )


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "sigmoids"}, "loss"),
        ({"label_smoothing": 0.1}, "label_smoothing does nothing with sigmoid"),
        ({"loss": "exo_pair"}, "exo_pair needs label_smoothing above 0"),
        ({"loss": {"sigmoid": 1, "sft": 0.1}, "sft_weight": 0.1}, "say the same thing"),
        ({"loss": {}}, "loss names none"),
        ({"reference_free": True, "precompute_reference": True}, "do not go together"),
        ({"reference_free": True, "loss": "apo_zero"}, "reference_free does not go with apo_zero"),
        ({"reference_sync": {}}, "write select_by last"),
    ],
)
def test_settings_that_would_do_nothing_or_cannot_work_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe_from_tree(recipe(settings, {}))
    assert message in "\n".join(error.value.problems)


def test_what_the_algorithm_says_is_not_said_again_in_extra() -> None:
    with pytest.raises(RecipeError, match=r"extra\.beta: set by algorithm\.beta; leave it out here"):
        recipe_from_tree(recipe({}, {"extra": {"beta": 0.2}}))
    recipe_from_tree(recipe({}, {"extra": {"ld_alpha": 0.5}}))


def test_an_adapter_and_a_reference_that_follows_do_not_go_together(tmp_path: Path) -> None:
    sync = {"reference_sync": {}, "select_by": "last"}
    with pytest.raises(RecipeError, match=r"with model\.adapter the model without it is the reference"):
        trainer(tmp_path, sync, {"adapter": {"rank": 4}})


def test_a_domain_without_preferences_is_refused_before_training() -> None:
    tree = recipe({}, {}) | {"domain": {"type": "recommendation"}}
    with pytest.raises(RecipeError, match="'dpo' learns from Preference records"):
        recipe_from_tree(tree)
