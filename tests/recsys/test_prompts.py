"""One prompt module for SFT, RL, evaluation and serving; and the answer is never in the prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toys import tiny_job, tiny_recipe

from rlkit.config.domains import AugmentSettings
from rlkit.errors import ModelError
from rlkit.recsys.domain import RecommendationDomain
from rlkit.recsys.prompts import render_history
from rlkit.recsys.semantic_ids import SemanticIds


def domain(folder: Path, template: str) -> RecommendationDomain:
    tree = tiny_recipe()
    tree["domain"] = {**tree["domain"], "template": template}
    job = tiny_job(folder, "sft", tree)
    job.load_model()
    return job.domain


def test_the_compact_prompt_is_the_history_and_nothing_else() -> None:
    assert render_history("compact", ["<a_1><b_2>", "<a_3>"], "<s>") == "<s><a_1><b_2><a_3>"


def test_the_instruct_prompt_shows_the_history_oldest_first() -> None:
    text = render_history("instruct", ["<a_1>", "<a_2>"], "")
    assert "<a_1>, <a_2>" in text
    assert text.endswith("### Next item:\n")


@pytest.mark.parametrize("template", ["compact", "instruct"])
def test_the_answer_is_never_in_the_prompt(template: str, tmp_path: Path) -> None:
    built = domain(tmp_path, template)
    for index, row in enumerate(built.data.splits["train"][:200]):
        prompts = {built.prompt(replace(row, target=target), "x").text for target in range(len(built.data.items))}
        assert len(prompts) == 1, "the prompt would change with the target"
        prompt = built.prompt(row, f"{index}")
        if row.target not in row.history:
            assert prompt.answer not in prompt.text


@pytest.mark.parametrize("template", ["compact", "instruct"])
def test_sft_rl_and_evaluation_see_the_same_prompt(template: str, tmp_path: Path) -> None:
    built = domain(tmp_path, template)
    prompts = built.prompts("train")
    demonstrations = built.demonstrations("train")
    assert [p.text for p in prompts] == [d.prompt for d in demonstrations]
    assert [p.answer for p in prompts] == [d.completion for d in demonstrations]
    if template == "compact":
        # What whole-sequence training conditions on when it predicts the target is the tokenized prompt.
        row = built.valid_sequences()[0]
        valid = built.prompts("valid")[0]
        ids = built.tokenizer(valid.text, add_special_tokens=False).input_ids
        assert row["input_ids"][: len(ids)].tolist() == ids


def test_every_record_knows_its_source_and_carries_its_own_target(tmp_path: Path) -> None:
    built = domain(tmp_path, "compact")
    for prompt, row in zip(built.prompts("test"), built.data.splits["test"]):
        assert prompt.context is row
        assert prompt.answer == built.sid(row.target)
        assert prompt.source == row.source
    assert len({prompt.key for prompt in built.prompts("train")}) == len(built.data.splits["train"])


def test_a_table_of_another_catalog_or_another_normalization_is_refused(tmp_path: Path) -> None:
    built = domain(tmp_path, "compact")
    tokens, count = built.ids.tokens, len(built.data.items)
    built.data = replace(built.data, semantic_ids=tokens)
    built.use(SemanticIds(tokens))
    with pytest.raises(ModelError, match="use the data that the model was trained on"):
        built.use(SemanticIds(tokens[:-1]))
    with pytest.raises(ModelError, match=f"item {built.data.items[0].key!r} is .* in the data, but got '<other>'"):
        built.use(SemanticIds((("<other>",), *tokens[1:count])))
    built.settings = built.settings.model_copy(update={"normalization": "vocabulary"})
    with pytest.raises(ModelError, match="says 'children', got 'vocabulary'"):
        built.use(SemanticIds(tokens))


def test_a_teacher_is_refused_where_the_models_table_normalizes_over_the_vocabulary(tmp_path: Path) -> None:
    built = domain(tmp_path, "compact")
    built.use(built.ids.with_normalization("vocabulary"))
    built.settings = built.settings.model_copy(update={"augment": AugmentSettings(teacher=1.0)})
    with pytest.raises(ModelError, match=r"domain.augment.teacher: .* got 'vocabulary'"):
        built.train_sequences()


def test_what_the_models_template_ignores_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built = domain(tmp_path, "instruct")
    built.settings = built.settings.model_copy(update={"augment": AugmentSettings(walks=5)})
    assert built.train_sequences() is None
    assert caplog.messages == ["domain: the instruct template ignores augment"]


@pytest.mark.parametrize("text", ["{", "[]", '{"template": "other"}'])
def test_a_damaged_note_of_a_models_template_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "prompt.json").write_text(text)
    tree = tiny_recipe()
    tree["model"] = {"path": str(tmp_path)}
    with pytest.raises(ModelError, match=r"prompt.json: .*; set domain.template, or take a whole model"):
        _ = tiny_job(tmp_path / "run", "sft", tree).domain
