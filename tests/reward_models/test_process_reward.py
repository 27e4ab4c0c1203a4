"""Process rewards: steps found in tokens, their scores put together or credited, and the wrong kind refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from preference_pairs import reward_folder
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from toys import language_model_folder, tiny_model
from transformers import PreTrainedTokenizerFast

from rlkit.algorithms.ppo import PPO
from rlkit.cli.main import main
from rlkit.config.models import CausalLMSettings
from rlkit.config.ppo import PPOSettings
from rlkit.config.process_rewards import ProcessRewardSettings
from rlkit.config.reward_models import LearnedRewardSettings
from rlkit.errors import DataError, ModelError
from rlkit.models.head_files import NOTES_FILE, PROCESS, headless
from rlkit.models.step_head import character_ends, load_step_head, new_step_head, score_steps, step_rows
from rlkit.models.tokenizer import byte_tokenizer
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.rewarder import Rewarder, WeightedReward
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.text_rewards import Sample
from rlkit.recipe import recipe_from_tree
from rlkit.records import Prompt, Source
from rlkit.reward_lab.cases import check_cases
from rlkit.reward_models.process import aggregated, process_reward, step_shares
from rlkit.run_directory import RunDirectory

PROMPT = "<|user|>add<|assistant|>"


def process_folder(folder: Path, notes: dict | None = None) -> str:
    """Write a process reward model with a head large enough to tell steps apart."""
    made = new_step_head(tiny_model(), seed=0)
    with torch.no_grad():
        made.model.score.weight *= 20
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    if notes is not None:
        (folder / NOTES_FILE).write_text(json.dumps(notes))
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return process_folder(tmp_path_factory.mktemp("prm") / "model")


def reward(folder: str, **settings: Any) -> Any:
    return process_reward(ProcessRewardSettings(path=folder, **settings), SimpleNamespace(tokenizer=byte_tokenizer()))


def right_after(folder: str, text: str) -> float:
    """Return P(right) at the last byte of a text, computed alone."""
    model = load_step_head(CausalLMSettings(path=folder)).model.eval()
    ids = byte_tokenizer()(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        wrong, right = model(input_ids=torch.tensor([ids])).logits[0, -1].tolist()
    return math.exp(right) / (math.exp(right) + math.exp(wrong))


# ---- arithmetic


@pytest.mark.parametrize(
    ("how", "whole", "shares"),
    [
        ("product", 0.9 * 0.5 * 0.8, [0.9, 0.45 - 0.9, 0.36 - 0.45]),
        ("min", 0.5, [0.9, 0.5 - 0.9, 0.0]),
        ("mean", 2.2 / 3, [0.3, 0.5 / 3, 0.8 / 3]),
        ("last", 0.8, [0.9, 0.5 - 0.9, 0.8 - 0.5]),
    ],
)
def test_scores_of_steps_are_put_together_and_shared_out(how: str, whole: float, shares: list[float]) -> None:
    scores = [0.9, 0.5, 0.8]
    assert aggregated(scores, how) == pytest.approx(whole)
    assert step_shares(scores, how) == pytest.approx(shares)
    assert sum(step_shares(scores, how)) == pytest.approx(whole)
    assert aggregated([], how) == 0.0
    assert step_shares([], how) == []
    assert aggregated([0.7], how) == 0.7
    assert step_shares([0.7], how) == [0.7]


# ---- steps in token space


@pytest.mark.parametrize(
    ("text", "separator", "truncated", "steps", "unfinished"),
    [
        ("a b\nc", "\n", False, ["a b", "c"], False),
        ("a b\nc", "\n", True, ["a b"], True),
        ("a\n\n\n b \n", "\n", True, ["a", " b"], False),
        ("a\n\nb\nc", "\n\n", False, ["a", "b\nc"], False),
        ("one", "\n", True, [], True),
        ("", "\n", False, [], False),
        (" \n ", "\n", True, [], False),
    ],
)
def test_steps_end_at_their_last_character(
    text: str, separator: str, truncated: bool, steps: list[str], unfinished: bool
) -> None:
    ends, open_ = character_ends(text, separator, truncated)
    assert open_ == unfinished
    starts = [0, *ends]
    found = [text[start:end] for start, end in zip(starts, ends)]
    assert [part.lstrip("\n") for part in found] == steps


def bpe(texts: list[str], pre: Any, decoder: Any, size: int = 400) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre, decoder
    alphabet = pre_tokenizers.ByteLevel.alphabet() if decoder.__class__.__name__ == "ByteLevel" else []
    special = ["<unk>", "<end>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(texts * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", unk_token="<unk>")


TEXTS = ["Add 3.\nThen 4.\nSo 7.", "先加三。\n再加四。\n得七。", "é\nnaïve\n🙂\nok"]
TOKENIZERS = {
    "bytes": byte_tokenizer,
    # without a pattern merges cross everything, so that ".\nT" is one token
    "merged": lambda: bpe(
        TEXTS, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    ),
    "words": lambda: bpe(TEXTS, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
    "metaspace": lambda: bpe(TEXTS, pre_tokenizers.Metaspace(prepend_scheme="never"), decoders.Metaspace()),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_end_of_a_step_is_the_token_that_completes_its_last_character(name: str, text: str) -> None:
    """Against the definition itself: the shortest run of tokens whose decoding begins with the text up to there."""
    tokenizer = TOKENIZERS[name]()
    for ids in (
        tokenizer(text, add_special_tokens=False).input_ids,
        [token for letter in text for token in tokenizer(letter, add_special_tokens=False).input_ids],  # as sampled
    ):
        decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        (row,) = step_rows(tokenizer, [[7, 8]], [ids], [False], separator="\n", max_tokens=1000)
        chars, at = [], 0
        for line in decoded.split("\n"):
            at += len(line)
            chars += [at] if line.strip() else []
            at += 1
        assert len(row.ends) == len(chars) >= 3
        for end, char in zip(row.ends, chars):
            runs = (tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False) for n in range(1, len(ids) + 1))
            expected = next(n for n, run in enumerate(runs) if run[:char] == decoded[:char])
            assert end == 2 + expected
        assert row.ids == [7, 8, *ids]


def test_some_of_these_tokenizers_merge_separators_and_some_split_characters() -> None:
    merged, split = TOKENIZERS["merged"](), byte_tokenizer()
    pieces = [merged.decode([token]) for token in merged(TEXTS[0], add_special_tokens=False).input_ids]
    assert any(piece.strip() and not piece.startswith("\n") and "\n" in piece for piece in pieces)
    assert len(split("é", add_special_tokens=False).input_ids) == 2


def test_long_rows_lose_the_beginning_of_their_prompt_then_their_last_steps() -> None:
    tokenizer = byte_tokenizer()
    prompt, answer = ([ord(c) for c in "abcdef"], tokenizer("1\n2\n3", add_special_tokens=False).input_ids)

    def row(limit: int) -> Any:
        return step_rows(tokenizer, [prompt], [answer], [False], separator="\n", max_tokens=limit)[0]

    assert row(11)[1:] == (6, [6, 8, 10], False)
    assert row(8)[1:] == (3, [3, 5, 7], False)
    assert row(8).ids == [*prompt[-3:], *answer]
    assert row(5)[1:] == (1, [1, 3], True)  # one token of the prompt stays, the last step goes


# ---- scores


def test_steps_are_scored_at_their_ends_alone_as_in_a_batch(folder: str) -> None:
    texts = ["1+1=2\n2+2=5", "3", "no\nyes\nperhaps it is so"]
    found = reward(folder, batch_size=2).judge([Sample(PROMPT, text) for text in texts])
    for text, outcome in zip(texts, found):
        steps = text.split("\n")
        expected = [right_after(folder, PROMPT + "\n".join(steps[: n + 1])) for n in range(len(steps))]
        assert list(outcome.parts.values()) == pytest.approx(expected, abs=1e-5)
        assert list(outcome.parts) == [f"step_{n + 1}" for n in range(len(steps))]
        assert outcome.score == pytest.approx(math.prod(expected), abs=1e-5)
    scores = [value for outcome in found for value in outcome.parts.values()]
    assert max(scores) - min(scores) > 0.05


def test_a_step_that_was_cut_off_counts_as_wrong_or_not_at_all(folder: str) -> None:
    cut = Sample(PROMPT, "1+1=2\n2+2", truncated=True)
    first = right_after(folder, PROMPT + "1+1=2")
    (outcome,) = reward(folder, aggregate="mean").judge([cut])
    assert (outcome.score, dict(outcome.parts)) == (pytest.approx(first / 2), {"step_1": pytest.approx(first)})
    assert reward(folder).score([cut]) == [0.0]
    assert reward(folder, unfinished="left_out").score([cut]) == pytest.approx([first])
    assert reward(folder).score([Sample(PROMPT, "1+1=2\n", truncated=True)]) == pytest.approx([first])
    assert reward(folder).score([Sample(PROMPT, "")]) == [0.0]
    assert reward(folder).score([]) == []


def test_the_separator_and_the_length_are_those_of_training_unless_set(tmp_path: Path) -> None:
    own = process_folder(tmp_path / "prm", {"kind": "process", "separator": ";", "max_tokens": 99})
    assert (reward(own).scorer.separator, reward(own).scorer.max_tokens) == (";", 99)
    other = reward(own, separator="\n\n", max_tokens=50).scorer
    assert (other.separator, other.max_tokens) == ("\n\n", 50)
    assert len(reward(own).judge([Sample(PROMPT, "a;b\nc")])[0].parts) == 2


# ---- rollouts


def rollouts(completions: list[list[str | None]], cut: frozenset = frozenset()) -> Rollouts:
    """Return groups of texts after ``PROMPT``; None: absent, ``cut``: without the end token."""
    tokenizer = byte_tokenizer()

    def ids(text: str | None, place: tuple[int, int]) -> list[int]:
        if text is None:
            return []
        return tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] * (place not in cut)

    rows = [[ids(text, (b, g)) for g, text in enumerate(group)] for b, group in enumerate(completions)]
    length = max(len(row) for group in rows for row in group)
    prompt = tokenizer(PROMPT, add_special_tokens=False).input_ids
    batch = GroupBatch(
        prompts=torch.tensor([[0, *prompt]] * len(rows)),
        prompt_mask=torch.tensor([[0] + [1] * len(prompt)] * len(rows)),
        completions=torch.tensor([[row + [0] * (length - len(row)) for row in group] for group in rows]),
        mask=torch.tensor([[[1] * len(row) + [0] * (length - len(row)) for row in group] for group in rows]).bool(),
    )
    shape = batch.mask.shape[:2]
    truncated = torch.tensor([[(b, g) in cut for g in range(shape[1])] for b in range(shape[0])])
    records = [Prompt(str(index), PROMPT, "", Source("test")) for index in range(len(rows))]
    empty = torch.zeros(len(rows), 1, dtype=torch.long)
    return Rollouts(records, batch, torch.zeros(shape), None, truncated, empty, empty.bool())


GROUPS: list[list[str | None]] = [["1+1=2\n2+2=5", None], ["no\nyes\nso", "1\n2+2"]]
CUT = frozenset({(1, 1)})


@pytest.mark.parametrize("how", ["product", "min", "mean", "last"])
def test_credit_lands_on_the_last_token_of_each_step_and_adds_up_to_the_score(folder: str, how: str) -> None:
    found = rollouts(GROUPS, CUT)
    whole = reward(folder, aggregate=how)(found)
    dense = reward(folder, aggregate=how, credit="steps")(found)
    assert dense.shape == found.batch.mask.shape
    assert torch.allclose(dense.sum(-1), whole, atol=1e-6)
    assert whole[0, 1] == 0
    paid = {(b, g): dense[b, g].nonzero().flatten().tolist() for b in range(2) for g in range(2)}
    # "1+1=2" ends at byte 4, "2+2=5" at 10, before the end token; "no", "yes", "so" at 1, 5, 8; "1" at 0, "2+2" was cut
    places = {(0, 0): [4, 10], (0, 1): [], (1, 0): [1, 5, 8], (1, 1): [0, 4]}
    for key, where in paid.items():
        assert set(where) <= set(places[key])
    text = Sample(PROMPT, "no\nyes\nso")
    scores = list(reward(folder).judge([text])[0].parts.values())
    assert dense[1, 0, [1, 5, 8]].tolist() == pytest.approx(step_shares(scores, how), abs=1e-5)
    first = right_after(folder, PROMPT + "1")
    assert dense[1, 1, [0, 4]].tolist() == pytest.approx(step_shares([first, 0.0], how), abs=1e-5)


def test_text_and_rollouts_have_the_same_scores(folder: str) -> None:
    found = reward(folder)(rollouts(GROUPS, CUT))
    samples = [Sample(PROMPT, "1+1=2\n2+2=5"), Sample(PROMPT, "no\nyes\nso"), Sample(PROMPT, "1\n2+2", truncated=True)]
    assert found[[0, 1, 1], [0, 0, 1]].tolist() == pytest.approx(reward(folder).score(samples), abs=1e-6)


def test_ppo_returns_what_is_still_to_come_from_each_token_on(folder: str) -> None:
    found = rollouts(GROUPS, CUT)
    settings = ProcessRewardSettings(path=folder, aggregate="min", credit="steps", weight=2.0)
    part = process_reward(settings, SimpleNamespace(tokenizer=byte_tokenizer()))
    Rewarder([WeightedReward("process", 2.0, part, settings)])(found)
    assert found.dense is not None
    shares = reward(folder, aggregate="min", credit="steps")(found)
    assert torch.allclose(found.dense, 2 * shares)
    assert torch.allclose(found.rewards, 2 * reward(folder, aggregate="min")(found), atol=1e-6)
    ppo = PPO(PPOSettings(rewards=[settings], kl_coef=0.0, gae_lambda=1.0, missing_eos_penalty=0.0))
    numbers = ppo.experience(found)
    batch = found.batch
    zeros = torch.zeros(batch.mask.shape)
    batch.numbers |= {**numbers, "values": zeros, "old_logprobs": zeros}
    ppo.credit([batch])
    tail = found.dense.flip(-1).cumsum(-1).flip(-1) * batch.mask  # the rewards of a token and of all after it
    assert torch.allclose(batch.numbers["returns"], tail, atol=1e-5)
    first, later = batch.numbers["returns"][1, 0, 0], batch.numbers["returns"][1, 0, 2]
    assert first == pytest.approx(float(found.rewards[1, 0]), abs=1e-5)
    assert later == pytest.approx(float(found.rewards[1, 0] - found.dense[1, 0, 1]), abs=1e-5)


def test_another_tokenizer_than_the_policys_is_refused(folder: str) -> None:
    other = byte_tokenizer()
    other.add_tokens(["<extra>"])
    part = process_reward(ProcessRewardSettings(path=folder), SimpleNamespace(tokenizer=other))
    with pytest.raises(ModelError, match="is not the policy's"):
        part(rollouts([["a"], ["b"]]))


# ---- folders and settings


def test_a_saved_step_head_scores_as_before(tmp_path: Path) -> None:
    made = new_step_head(tiny_model(), seed=3)
    made.model.save_pretrained(tmp_path / "prm")
    made.tokenizer.save_pretrained(tmp_path / "prm")
    loaded = load_step_head(CausalLMSettings(path=str(tmp_path / "prm")))
    ids = made.tokenizer("1\n2\n3", add_special_tokens=False).input_ids
    rows = step_rows(made.tokenizer, [[5]], [ids], [False], separator="\n", max_tokens=50)
    before, after = score_steps(made.model.eval(), rows), score_steps(loaded.model.eval(), rows)
    assert before == after
    assert len(before[0]) == 3
    assert loaded.model.config.id2label == {0: "wrong", 1: "right"}


def test_the_wrong_kind_of_model_is_refused_by_name(folder: str, tmp_path: Path) -> None:
    outcome, plain = reward_folder(tmp_path / "rm"), str(language_model_folder(tmp_path / "lm"))
    assert headless(folder, PROCESS) is None
    with pytest.raises(DataError) as error:
        ProcessRewardSettings(path=outcome).check()
    assert error.value.problems == (
        f"reward process: path: no process reward model in {outcome!r}: it is an outcome reward model, which scores "
        "whole completions (what the reward 'model' reads); name the model folder that `rlkit train-rm --kind process` "
        "wrote",
    )
    with pytest.raises(
        DataError, match=r"it is a process reward model, which scores steps \(what the reward 'process'"
    ):
        LearnedRewardSettings(path=folder).check()
    with pytest.raises(ModelError, match="it is an outcome reward model"):
        reward(outcome)
    with pytest.raises(ModelError, match="its weights hold no reward head"):
        reward(plain)
    with pytest.raises(ModelError, match="no folder is named"):
        process_reward(ProcessRewardSettings(), None)
    ProcessRewardSettings(path=folder).check()


def test_settings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValidationError, match="path and stage name the model twice"):
        ProcessRewardSettings(path="a", stage="b")
    with pytest.raises(ValidationError, match="clip and standardize are about one score"):
        ProcessRewardSettings(path="a", credit="steps", clip=(0.0, 1.0), standardize=True)
    with pytest.raises(ValidationError, match="clip are about one score"):
        ProcessRewardSettings(path="a", credit="steps", clip=(0, 1))


def test_rows_of_a_file_gain_the_scores_of_their_steps(folder: str, tmp_path: Path, monkeypatch, capsys) -> None:
    rows: list[Any] = [{"prompt": "add", "completion": "1+1=2\n2+2=5"}, {"prompt": "add", "completion": "3"}]
    rows += [{"prompt": "add", "completion": "1+1=2\n2+2", "truncated": True}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    command = ["rlkit", "rewards", "score", "process", "--data", "rows.jsonl", "--out", "out.jsonl"]
    monkeypatch.setattr(sys, "argv", [*command, f"path={folder}", "aggregate=min"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, capsys.readouterr().err
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = [right_after(folder, PROMPT + text) for text in ("1+1=2", "1+1=2\n2+2=5")]
    assert list(found[0]["parts"]) == ["step_1", "step_2"]
    assert list(found[0]["parts"].values()) == pytest.approx(expected, abs=1e-5)
    assert found[0]["score"] == pytest.approx(min(expected), abs=1e-5)
    assert found[1]["score"] == found[1]["parts"]["step_1"]
    assert list(found[2]["parts"]) == ["step_1"]
    assert found[2]["score"] == 0.0  # its last step was cut off, which counts as wrong


def test_a_golden_case_is_read_in_the_chat_template_as_a_run_reads_it(folder: str, tmp_path: Path) -> None:
    said = right_after(folder, PROMPT + "1+1=2")
    assert abs(said - right_after(folder, "add1+1=2")) > 0.01
    part = {"type": "process", "path": folder, "cases": [{"prompt": "add", "completion": "1+1=2", "score": said}]}
    prompts = {"type": "arithmetic", "rows": 8, "held_out": 4}
    grpo = {"type": "grpo", "rollout": {"type": "sample"}, "group_size": 2, "rewards": [part]}
    domain = {"type": "chat", "prompts": prompts}
    tree = {"name": "cases", "domain": domain, "stages": {"grpo": {"algorithm": grpo}}}
    report = check_cases(recipe_from_tree(tree).recipe, RunDirectory(tmp_path / "run"))
    assert (report.checked, report.problems, report.skipped) == (1, [], [])
