"""A conversation with a model: what it is asked with, how it streams, and what it forgets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from toys import language_model_folder, tiny_model

from rlkit.chat.answers import greedy_answers
from rlkit.chat.chat_model import load_chat_model
from rlkit.chat.converse import Conversation, end_tokens, stream_tokens, text_pieces
from rlkit.errors import DataError, ModelError
from rlkit.models.load import LoadedModel
from rlkit.policy.text_sampler import Truncation
from rlkit.recipe import recipe_from_tree, resolved_yaml
from rlkit.records import Prompt, Source
from rlkit.run_directory import RunDirectory

GREEDY = Truncation(1.0, top_k=1)


def conversation(loaded: LoadedModel | None = None, max_tokens: int = 5, **options: object) -> Conversation:
    """Return a conversation with a tiny model, greedy unless told otherwise."""
    loaded = loaded or tiny_model()
    loaded.model.eval()
    options = {"truncation": GREEDY, "generator": torch.Generator().manual_seed(0), **options}
    return Conversation(loaded, max_tokens=max_tokens, **options)  # type: ignore[arg-type]


def test_a_greedy_answer_is_the_one_that_evaluation_sees() -> None:
    loaded = tiny_model()
    text = "<|system|>Be brief.<|user|>Hi<|assistant|>"
    prompt = Prompt("0", text, "", Source("f"))
    (wanted,) = greedy_answers(
        loaded.model.eval(), loaded.tokenizer, [prompt], max_tokens=5, batch_size=1, device="cpu"
    )
    assert "".join(conversation(loaded, system="Be brief.").answer("Hi")) == wanted.text


def test_later_turns_see_the_earlier_ones_until_reset() -> None:
    talk = conversation()
    first = "".join(talk.answer("Hi"))
    "".join(talk.answer("And?"))
    assert [turn["role"] for turn in talk.messages] == ["user", "assistant"] * 2
    assert talk.messages[1]["content"] == first
    rendered = talk.loaded.tokenizer.decode(talk._encode(talk.messages[:3]))
    assert rendered == f"<|user|>Hi<|assistant|>{first}<|end|><|user|>And?<|assistant|>"
    talk.reset()
    assert talk.messages == []
    assert "".join(talk.answer("Hi")) == first


def test_a_seed_gives_the_same_conversation_twice_and_another_one_another() -> None:
    said = []
    for seed in (1, 1, 2):
        talk = conversation(truncation=Truncation(1.0), generator=torch.Generator().manual_seed(seed), max_tokens=8)
        said.append(["".join(talk.answer(text)) for text in ("Hi", "And?")])
    assert said[0] == said[1] != said[2]


def test_an_answer_that_is_stopped_belongs_to_the_conversation_as_far_as_it_came() -> None:
    talk = conversation(max_tokens=50)
    pieces = talk.answer("Hi")
    begun = next(pieces)
    pieces.close()
    assert talk.messages == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": begun}]


def test_the_oldest_turns_are_forgotten_where_the_context_ends() -> None:
    loaded, told = tiny_model(), []
    loaded.model.config.max_position_embeddings = 60
    talk = conversation(loaded, max_tokens=8, notice=told.append, system="S")
    for text in ("first " * 3, "second " * 3):
        "".join(talk.answer(text))
    assert told == ["the oldest turn is forgotten: the context has room for 60 tokens"]
    assert [turn["content"] for turn in talk.messages[::2]] == ["second " * 3]
    # <|system|>S<|user|> and <|assistant|> are 4 tokens, 52 more fill it but for 4
    assert len("".join(talk.answer("x" * 52)).encode()) <= 60
    with pytest.raises(DataError, match="message: 64 tokens, but the model has room for 60; write a shorter one"):
        "".join(talk.answer("x" * 60))
    assert talk.messages == [], "what did not fit is forgotten, too"


def test_end_tokens_are_the_tokenizers_and_the_models() -> None:
    loaded = tiny_model()
    loaded.model.generation_config.eos_token_id = [7, 8]
    assert end_tokens(loaded) == {loaded.tokenizer.eos_token_id, 7, 8}
    prompt = loaded.tokenizer("<|user|>Hi<|assistant|>").input_ids
    options = {"truncation": GREEDY, "generator": torch.Generator(), "max_tokens": 6}
    free = list(stream_tokens(loaded.model.eval(), prompt, end_ids=frozenset(), **options))
    assert len(free) == 6
    place = free.index(free[3])
    assert list(stream_tokens(loaded.model, prompt, end_ids=frozenset([free[3]]), **options)) == free[:place]


def test_a_character_is_shown_when_its_last_byte_has_come() -> None:
    tokenizer = tiny_model().tokenizer
    ids = tokenizer("a€\U0001f600b").input_ids
    assert len(ids) == 9  # a token is a byte
    assert list(text_pieces(tokenizer, ids)) == ["a", "€", "\U0001f600", "b"]
    assert list(text_pieces(tokenizer, ids[:3])) == ["a", "\ufffd"]  # cut off within a character
    assert list(text_pieces(tokenizer, [])) == []


def test_a_template_that_refuses_the_system_message_says_so_at_once() -> None:
    loaded = tiny_model()
    loaded.tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}x"
    with pytest.raises(ModelError, match="--system: the chat template refuses the messages: no; leave it out"):
        conversation(loaded, system="S")
    conversation(loaded)


# ---- which model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run directory with two stages, made by hand."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "train.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' * 4)
    train = {"algorithm": {"type": "sft"}}
    tree = {
        "name": "talk",
        "model": {"hidden_size": 32, "layers": 1},
        "domain": {"type": "chat", "prompts": str(folder / "train.jsonl"), "system": "Be kind."},
        "stages": {"first": train, "second": train},
    }
    directory = RunDirectory(folder / "run")
    directory.open(resolved_yaml(recipe_from_tree(tree).recipe), 0, {})
    for seed, stage in enumerate(("first", "second")):
        loaded = tiny_model(seed=seed)
        for part in (loaded.model, loaded.tokenizer):
            part.save_pretrained(directory.stage(stage) / "model")
        directory.finish(stage, "", {"policy": {}}, 1.0)
    return directory.path


def weight(loaded: LoadedModel) -> float:
    """Return one number by which models are told apart."""
    return float(loaded.model.get_input_embeddings().weight.detach()[9, 0])


def test_a_run_means_its_last_policy_and_a_stage_its_own(run: Path) -> None:
    found = load_chat_model(str(run))
    assert (found.name, found.system) == (str(run / "second" / "model"), "Be kind.")
    assert weight(found.loaded) == weight(tiny_model(seed=1))
    first = load_chat_model(str(run / "first"))
    assert (weight(first.loaded), first.system) == (weight(tiny_model(seed=0)), "Be kind.")


def test_a_folder_is_taken_as_it_is(run: Path, tmp_path: Path) -> None:
    assert load_chat_model(str(run / "first" / "model")).system is None
    found = load_chat_model(str(language_model_folder(tmp_path)))
    assert found.name == str(tmp_path)
    assert found.loaded.tokenizer.chat_template


def test_what_is_no_model_is_refused_by_what_it_is(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "manifest.json").write_text(json.dumps({"stages": {"ids": {"artefacts": {}}}}))
    for name, reason in (
        ("nowhere", "there is no such folder"),
        ("file.txt", "is a file, not a folder"),
        ("adapter", "is an adapter without its model"),
        ("unfinished", "no stage of this run has made a policy, finished: ids"),
        (".", "holds no model, got adapter, file.txt, unfinished"),
    ):
        with pytest.raises(ModelError, match=reason):
            load_chat_model(str(tmp_path / name))
    with pytest.raises(ModelError, match="there is no such folder"):
        load_chat_model("runs/no-such-run")  # never looked for on a hub


def test_a_reward_model_is_told_from_one_that_writes(run: Path, tmp_path: Path) -> None:
    from transformers import Qwen2ForSequenceClassification

    folder = tmp_path / "reward"
    shutil.copytree(run / "first" / "model", folder)
    config = tiny_model().model.config
    config.num_labels = 1
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    with pytest.raises(ModelError, match="is a reward model, which scores answers and writes none"):
        load_chat_model(str(folder))
