"""Learned rewards score the tokens that were sampled, alone as in a batch, one model as several."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from preference_pairs import generated_pairs, reward_folder
from pydantic import ValidationError
from torch import Tensor
from toys import language_model_folder

from rlkit.config.models import CausalLMSettings
from rlkit.config.reward_models import LearnedRewardSettings
from rlkit.errors import DataError, ModelError
from rlkit.models.load import load_causal_lm
from rlkit.models.scalar_head import load_scalar_head, new_scalar_head
from rlkit.models.tokenizer import byte_tokenizer, fingerprint
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.text_rewards import Sample
from rlkit.records import Prompt, Source
from rlkit.reward_models.scorer import learned_reward

PROMPTS = ("<|user|>hello<|assistant|>", "<|user|>a longer question?<|assistant|>")


def score_alone(folder: str, row: list[int]) -> float:
    model = load_scalar_head(CausalLMSettings(path=folder)).model.eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([row])).logits.item()


def rollouts(completions: list[list[str | None]], cut: set[tuple[int, int]] = frozenset()) -> Rollouts:
    """Return groups of texts after ``PROMPTS``; None: absent, ``cut``: without the end token."""
    tokenizer = byte_tokenizer()
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in PROMPTS]
    rows = [
        [
            []
            if text is None
            else tokenizer(text, add_special_tokens=False).input_ids
            + ([] if (b, g) in cut else [tokenizer.eos_token_id])
            for g, text in enumerate(group)
        ]
        for b, group in enumerate(completions)
    ]
    width, length = max(map(len, prompts)), max(len(row) for group in rows for row in group)
    batch = GroupBatch(
        prompts=torch.tensor([[0] * (width - len(row)) + row for row in prompts]),
        prompt_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts]),
        completions=torch.tensor([[row + [0] * (length - len(row)) for row in group] for group in rows]),
        mask=torch.tensor([[[1] * len(row) + [0] * (length - len(row)) for row in group] for group in rows]),
    )
    shape = batch.mask.shape[:2]
    truncated = torch.tensor([[(b, g) in cut for g in range(shape[1])] for b in range(shape[0])])
    records = [Prompt(str(index), text, "", Source("test")) for index, text in enumerate(PROMPTS)]
    empty = torch.zeros(2, 1, dtype=torch.long)
    return Rollouts(records, batch, torch.zeros(shape), None, truncated, empty, empty.bool())


def domain() -> SimpleNamespace:
    return SimpleNamespace(tokenizer=byte_tokenizer())


def test_rollouts_are_scored_by_their_tokens_ended_cut_or_absent(tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "rm")
    found = rollouts([["thanks", None, "a much longer answer"], ["thanks", "no", "never"]], cut={(1, 0)})
    scores = learned_reward(LearnedRewardSettings(path=folder), domain())(found)
    tokenizer = byte_tokenizer()

    def expected(prompt: str, completion: str, end: bool) -> float:
        ids = tokenizer(prompt + completion, add_special_tokens=False).input_ids  # bytes: apart or together is the same
        return score_alone(folder, ids + [tokenizer.eos_token_id] * end)

    assert scores.shape == (2, 3)
    assert scores[0, 1] == 0
    assert scores[0, 0].item() == pytest.approx(expected(PROMPTS[0], "thanks", True), abs=1e-5)
    assert scores[0, 2].item() == pytest.approx(expected(PROMPTS[0], "a much longer answer", True), abs=1e-5)
    assert scores[1, 0].item() == pytest.approx(expected(PROMPTS[1], "thanks", False), abs=1e-5)
    assert abs(expected(PROMPTS[1], "thanks", False) - expected(PROMPTS[1], "thanks", True)) > 1e-3
    assert scores.std() > 0.01


def test_sampled_tokens_are_not_tokenized_anew(tmp_path: Path) -> None:
    """The tokenizer would write these words in fewer tokens than the policy sampled, letter by letter."""
    folder = language_model_folder(tmp_path / "lm")
    made = new_scalar_head(load_causal_lm(CausalLMSettings(path=str(folder))))
    made.model.save_pretrained(tmp_path / "rm")
    made.tokenizer.save_pretrained(tmp_path / "rm")
    text = "customer bought"
    merged = made.tokenizer(text, add_special_tokens=False).input_ids
    letters = [id_ for letter in text for id_ in made.tokenizer(letter, add_special_tokens=False).input_ids]
    assert len(letters) > len(merged)
    batch = GroupBatch(
        torch.tensor([[5, 6]]), torch.ones(1, 2), torch.tensor([[letters]]), torch.ones(1, 1, len(letters))
    )
    nothing = torch.zeros(1, 1, dtype=torch.long)
    record = [Prompt("0", "?", "", Source("test"))]
    found = Rollouts(record, batch, torch.zeros(1, 1), None, nothing.bool(), nothing, nothing.bool())
    reward = learned_reward(LearnedRewardSettings(path=str(tmp_path / "rm")), SimpleNamespace(tokenizer=made.tokenizer))
    assert reward(found).item() == pytest.approx(score_alone(str(tmp_path / "rm"), [5, 6, *letters]), abs=1e-6)


def test_batches_give_what_one_by_one_gives_in_the_order_of_the_rows(tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "rm")
    samples = [Sample(row.prompt, row.chosen) for row in generated_pairs(40, seed=3)]
    together = learned_reward(LearnedRewardSettings(path=folder, batch_size=7, batch_tokens=300), None).score(samples)
    alone = learned_reward(LearnedRewardSettings(path=folder, batch_size=1), None).score(samples)
    assert torch.allclose(torch.tensor(together), torch.tensor(alone), atol=1e-5)
    assert torch.tensor(alone).std() > 0.01
    tokenizer = byte_tokenizer()
    ids = tokenizer(samples[9].prompt + samples[9].completion, add_special_tokens=False).input_ids
    assert alone[9] == pytest.approx(score_alone(folder, [*ids, tokenizer.eos_token_id]), abs=1e-5)


def test_text_and_rollouts_have_the_same_scores(tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "rm")
    reward = learned_reward(LearnedRewardSettings(path=folder), domain())
    found = reward(rollouts([["thanks", "no"], ["sure", "well"]], cut={(0, 1)}))
    samples = [Sample(PROMPTS[b], text, truncated=(b, text) == (0, "no")) for b, text in
               ((0, "thanks"), (0, "no"), (1, "sure"), (1, "well"))]  # fmt: skip
    assert torch.allclose(found.flatten(), torch.tensor(reward.score(samples)), atol=1e-6)


def test_an_ensemble_takes_the_mean_or_the_worst(tmp_path: Path) -> None:
    folders = tuple(reward_folder(tmp_path / f"rm{seed}", seed) for seed in range(3))
    samples = [Sample(row.prompt, row.chosen) for row in generated_pairs(20, seed=3)]

    def scores(**settings) -> Tensor:
        return torch.tensor(learned_reward(LearnedRewardSettings(**settings), None).score(samples))

    each = torch.stack([scores(path=folder) for folder in folders])
    assert len(set(each.argmin(0).tolist())) > 1  # no model is the worst for all
    assert torch.allclose(scores(paths=folders), each.mean(0), atol=1e-6)
    assert torch.allclose(scores(paths=folders, aggregate="minimum"), each.min(0).values, atol=1e-6)


def test_normalized_scores_have_the_mean_and_spread_of_training_taken_out(tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "rm", notes={"train": {"mean": 0.5, "std": 2.0}})
    samples = [Sample(row.prompt, row.chosen) for row in generated_pairs(5, seed=3)]
    plain = torch.tensor(learned_reward(LearnedRewardSettings(path=folder), None).score(samples))
    normal = torch.tensor(learned_reward(LearnedRewardSettings(path=folder, normalize=True), None).score(samples))
    assert torch.allclose(normal, (plain - 0.5) / 2, atol=1e-6)
    with pytest.raises(DataError, match="notes no mean and standard deviation"):
        LearnedRewardSettings(path=reward_folder(tmp_path / "other"), normalize=True).check()


def test_rows_are_cut_on_the_left_where_training_cut_them(tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "rm", notes={"max_tokens": 12})
    tokenizer = byte_tokenizer()
    sample = Sample(PROMPTS[1], "thanks")
    ids = [*tokenizer(sample.prompt + "thanks", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    trained = learned_reward(LearnedRewardSettings(path=folder), None).score([sample])[0]
    wider = learned_reward(LearnedRewardSettings(path=folder, max_tokens=500), None).score([sample])[0]
    assert trained == pytest.approx(score_alone(folder, ids[-12:]), abs=1e-6)
    assert wider == pytest.approx(score_alone(folder, ids), abs=1e-6)


def test_another_tokenizer_than_the_policys_is_refused_by_name(tmp_path: Path) -> None:
    folder = reward_folder(tmp_path / "rm")
    other = byte_tokenizer()
    other.add_tokens(["<extra>"])
    reward = learned_reward(LearnedRewardSettings(path=folder), SimpleNamespace(tokenizer=other))
    assert reward.tokenizer_fingerprint == fingerprint(byte_tokenizer())
    with pytest.raises(ModelError, match="is not the policy's") as error:
        reward(rollouts([["a"], ["b"]]))
    message = str(error.value)
    assert folder in message
    assert fingerprint(other) in message
    assert fingerprint(byte_tokenizer()) in message


def test_models_are_frozen_and_move_together(tmp_path: Path) -> None:
    reward = learned_reward(LearnedRewardSettings(paths=(reward_folder(tmp_path / "rm"),) * 2), domain())
    assert not any(parameter.requires_grad for member in reward.members for parameter in member.model.parameters())
    assert reward.to("meta") is reward
    assert {next(member.model.parameters()).device.type for member in reward.members} == {"meta"}


def test_progress_runs_through_all_members_to_the_end(tmp_path: Path) -> None:
    settings = LearnedRewardSettings(paths=(reward_folder(tmp_path / "a"), reward_folder(tmp_path / "b")), batch_size=2)
    reward, shares = learned_reward(settings, None), []
    reward.progress = shares.append
    reward.score([Sample("a", "b")] * 4)
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert reward.score([]) == []


def test_the_chat_template_renders_conversations(tmp_path: Path) -> None:
    reward = learned_reward(LearnedRewardSettings(path=reward_folder(tmp_path / "rm")), None)
    assert reward.render([{"role": "user", "content": "hello"}]) == PROMPTS[0]


def test_folders_without_a_head_are_refused_before_torch_by_name(tmp_path: Path) -> None:
    lm = language_model_folder(tmp_path / "lm")
    with pytest.raises(DataError) as error:
        LearnedRewardSettings(paths=(str(lm), str(tmp_path / "none"), reward_folder(tmp_path / "rm"))).check()
    first, second = error.value.problems
    assert first.startswith(f"reward model: paths.0: no reward model in '{lm}': its weights hold no reward head; name")
    assert second.startswith(
        f"reward model: paths.1: no reward model in '{tmp_path / 'none'}': there is no such folder"
    )
    with pytest.raises(ModelError, match="its weights hold no reward head"):
        learned_reward(LearnedRewardSettings(path=str(lm)), None)
    with pytest.raises(ModelError, match="no folder is named"):
        learned_reward(LearnedRewardSettings(), None)


def test_a_reward_model_is_named_once_and_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="path and stage name the reward model more than once"):
        LearnedRewardSettings(path="a", stage="rm")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert LearnedRewardSettings(paths=("~/rm", "b")).folders == (str(tmp_path / "rm"), "b")
