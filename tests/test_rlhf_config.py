"""The flat configuration and its pipeline: what every field does in a real run, and what is said when it is wrong."""

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from toys import language_model_folder

import rlkit.engines.local
from rlkit import RLHFConfig, RLHFPipeline, create_rlhf_pipeline
from rlkit.config.models import CausalLMSettings
from rlkit.errors import DataError, RecipeError, RunError
from rlkit.models.load import tokenizer_of
from rlkit.models.tokenizer import byte_tokenizer, fingerprint

STAGES = ("sft", "reward_model", "ppo", "evaluate")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings(folder):
    """Return fields that differ from their defaults, all of them; data, a model and a tokenizer are written first.

    A tenth of each file is valid: 36 conversations, 27 pairs and 18 prompts are left for training.
    """
    language_model_folder(folder / "lm")  # 311 rows and a tokenizer of its own
    byte_tokenizer().save_pretrained(folder / "bytes")  # 262 tokens
    asked = [f"what is {n}" for n in range(40)]
    talks = [{"prompt": text, "completion": f"{text} is a number, said at length: {'so ' * 20}"} for text in asked]
    pairs = [{"prompt": text, "chosen": f"{text}, please", "rejected": "no"} for text in asked[:30]]
    return {
        "model_name": str(folder / "lm"),
        "tokenizer_path": str(folder / "bytes"),
        "device": "cpu",
        "sft_data_path": write(folder / "talks.jsonl", talks),
        "sft_epochs": 3.0,
        "sft_batch_size": 12,
        "sft_lr": 2e-3,
        "reward_data_path": write(folder / "pairs.jsonl", pairs),
        "reward_epochs": 4.0,
        "reward_lr": 3e-3,
        "reward_batch_size": 9,
        "freeze_reward_backbone": True,
        "ppo_data_path": write(folder / "prompts.jsonl", [{"prompt": f"say {n}"} for n in range(20)]),
        "ppo_iterations": 5,
        "ppo_lr_policy": 4e-4,
        "ppo_lr_value": 5e-3,
        "ppo_batch_size": 6,
        "ppo_mini_batch_size": 3,
        "ppo_epochs": 3,
        "max_length": 48,
        "save_dir": str(folder / "run"),
        "save_interval": 2,
        "log_level": "DEBUG",
    }


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Compute on one thread, as a recipe's ``engine.threads: 1`` would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlkit.engines.local, "threads_per_process", lambda *_: 1)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Run SFT by its own method, and the rest from the file that it left, as a second call would."""
    folder = tmp_path_factory.mktemp("rlhf")
    fields = settings(folder)
    out = Path(fields["save_dir"])
    (folder / "config.json").write_text(json.dumps(fields, indent="\t"))
    create_rlhf_pipeline(folder / "config.json").run_sft()
    after_sft = {name for name in STAGES if (out / name).exists()}
    written = (out / "sft" / "model" / "model.safetensors").stat().st_mtime_ns
    report = create_rlhf_pipeline(out / "config.json").run_full_pipeline()
    return SimpleNamespace(fields=fields, out=out, after_sft=after_sft, written=written, report=report)


# ---- what every field does


def optimizer(done, stage):
    """Return the peak learning rates of a stage's last checkpoint, one per group that holds parameters."""
    last = max((done.out / stage / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    groups = torch.load(last / "optimizer.pt", weights_only=True)["param_groups"]
    return sorted({group["initial_lr"] for group in groups if group["params"]})


def steps(done, stage):
    rows = map(json.loads, (done.out / "metrics.jsonl").read_text().splitlines())
    return max(row["step"] for row in rows if row["stage"] == stage)


def state(done, stage="ppo"):
    """Return the loop's and the Trainer's state at the end."""
    last = done.out / stage / "checkpoints" / f"checkpoint-{steps(done, stage)}"
    return [json.loads((last / name).read_text()) for name in ("policy.json", "trainer_state.json")]


def weights(done, stage):
    return load_file(done.out / stage / "model" / "model.safetensors")


def samples(done):
    return [json.loads(line) for line in (done.out / "samples.jsonl").read_text().splitlines()]


def model_name(done):
    config = json.loads((done.out / "ppo" / "model" / "config.json").read_text())
    assert (config["vocab_size"], config["num_key_value_heads"]) == (311, 1)  # the folder's, no preset's


def tokenizer_path(done):
    wanted = tokenizer_of(CausalLMSettings(tokenizer=done.fields["tokenizer_path"]))
    manifest = json.loads((done.out / "manifest.json").read_text())["stages"]
    made = [next(iter(manifest[stage]["artefacts"].values()))["tokenizer"] for stage in STAGES[:3]]
    assert made == [fingerprint(wanted)] * 3


def device(done):
    assert yaml.safe_load((done.out / "recipe.yaml").read_text())["engine"]["device"] == "cpu"
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(RecipeError, match=f"there is no {missing} device here"):
        RLHFPipeline(RLHFConfig(**done.fields | {"device": missing, "save_dir": str(done.out / "other")})).run_sft()


def sft_data_path(done):
    assert f"{done.fields['sft_data_path']}: format prompt_completion" in (done.out / "logs" / "rlkit.log").read_text()


def sft_epochs(done):
    assert steps(done, "sft") == 3 * (36 // 12)


sft_batch_size = sft_epochs


def sft_lr(done):
    assert optimizer(done, "sft") == [2e-3]


def reward_data_path(done):
    notes = json.loads((done.out / "reward_model" / "model" / "reward_model.json").read_text())
    assert notes["pairs"] == 3  # a tenth of the file
    assert f"{done.fields['reward_data_path']}: format preference" in (done.out / "logs" / "rlkit.log").read_text()


def reward_epochs(done):
    assert steps(done, "reward_model") == 4 * (27 // 9)


reward_batch_size = reward_epochs


def reward_lr(done):
    assert optimizer(done, "reward_model") == [3e-3]


def freeze_reward_backbone(done):
    policy, scorer = weights(done, "sft"), weights(done, "reward_model")
    shared = sorted(set(policy) & set(scorer))
    assert len(shared) == len(scorer) - 1 > 20  # all but the head
    assert all(torch.equal(policy[name], scorer[name]) for name in shared)


def ppo_data_path(done):
    prompts = {row["prompt"] for row in samples(done) if row["stage"] == "ppo"}
    assert all("say " in prompt for prompt in prompts)
    assert prompts


def ppo_iterations(done):
    assert state(done)[0]["rollout"] == 5


def ppo_batch_size(done):
    assert state(done)[0]["cursor"] == 5 * 6  # prompts that rollouts took


def ppo_epochs(done):
    assert state(done)[1]["global_step"] == 5 * (3 * 6 // 3)  # rollouts, and their updates: epochs x prompts / prompts


ppo_mini_batch_size = ppo_epochs


def ppo_lr_policy(done):
    assert optimizer(done, "ppo")[0] == 4e-4


def ppo_lr_value(done):
    assert optimizer(done, "ppo")[1:] == [5e-3]


def max_length(done):
    assert json.loads((done.out / "reward_model" / "model" / "reward_model.json").read_text())["max_tokens"] == 48
    assert RLHFConfig(**done.fields).to_recipe().recipe.stages["sft"].algorithm.max_tokens == 48
    assert done.report["metrics"]["completion_length"] <= 24


def save_dir(done):
    made = {path.name for path in done.out.iterdir()}
    assert {"config.json", "sft", "reward_model", "ppo", "logs"} <= made


def save_interval(done):
    made = {int(path.name[11:]) for path in (done.out / "ppo" / "checkpoints").glob("checkpoint-*")}
    assert made == {2 * 6, 4 * 6, 5 * 6}  # after rollouts 2 and 4 of six updates each, and the end
    assert (done.out / "ppo" / "model" / "model.safetensors").is_file()


def log_level(done):
    log = (done.out / "logs" / "rlkit.log").read_text()
    assert re.search(r" DEBUG ppo: inputs \w+, settings \{", log)
    assert " INFO ppo: finished in " in log


@pytest.mark.parametrize("field", RLHFConfig.model_fields)
def test_every_field_has_its_effect(field, done):
    assert getattr(RLHFConfig(), field) != done.fields[field], "the run shows nothing of a default"
    globals()[field](done)


# ---- the pipeline


def test_stages_that_are_finished_are_skipped(done):
    assert done.after_sft == {"sft"}
    assert (done.out / "sft" / "model" / "model.safetensors").stat().st_mtime_ns == done.written
    log = (done.out / "logs" / "rlkit.log").read_text()
    assert log.count("sft: starts") == 1
    assert "sft: finished before, skipped" in log


def test_the_methods_return_models_and_the_evaluation(done):
    pipeline = create_rlhf_pipeline(done.fields)
    assert pipeline.run_sft() == done.out / "sft" / "model"
    assert pipeline.run_reward_training() == done.out / "reward_model" / "model"
    assert pipeline.run_ppo_training() == done.out / "ppo" / "model"
    assert pipeline.evaluate_model() == done.report
    assert {"reward/model", "kl", "perplexity"} <= done.report["metrics"].keys()
    assert (done.out / "report.html").is_file()


def test_the_run_keeps_its_configuration_as_it_was_given(done):
    assert json.loads((done.out / "config.json").read_text()) == done.fields
    assert create_rlhf_pipeline(done.out / "config.json").config == RLHFConfig(**done.fields)


def test_other_settings_are_refused_in_the_same_folder_and_nothing_is_lost(done):
    before = (done.out / "config.json").read_text()
    with pytest.raises(RunError, match="stage 'ppo' was made with other settings"):
        create_rlhf_pipeline(done.fields | {"ppo_lr_policy": 1e-5}).run_full_pipeline()
    assert (done.out / "config.json").read_text() == before


def test_a_stage_without_the_one_before_says_what_to_call(tmp_path):
    pipeline = create_rlhf_pipeline({"save_dir": str(tmp_path / "run")})
    with pytest.raises(RunError, match=r"run_ppo_training: in .* run_sft and run_reward_training must come before"):
        pipeline.run_ppo_training()
    with pytest.raises(RunError, match=r"evaluate_model: in .* run_sft, run_reward_training and run_ppo_training must"):
        pipeline.evaluate_model()
    assert not (tmp_path / "run").exists()


def test_a_backbone_that_is_not_frozen_learns_and_a_quiet_log_is_empty(done, tmp_path):
    fields = done.fields | {"save_dir": str(tmp_path), "freeze_reward_backbone": False, "log_level": "error"}
    pipeline = create_rlhf_pipeline(fields)
    pipeline.run_sft()
    pipeline.run_reward_training()
    other = SimpleNamespace(out=tmp_path)
    policy, scorer = weights(other, "sft"), weights(other, "reward_model")
    assert not torch.equal(policy["model.embed_tokens.weight"], scorer["model.embed_tokens.weight"])
    assert torch.equal(policy["model.norm.weight"], weights(done, "sft")["model.norm.weight"])  # the same SFT
    assert (tmp_path / "logs" / "rlkit.log").read_text() == ""
    again = create_rlhf_pipeline(fields | {"reward_lr": 1e-3})
    with pytest.raises(RunError, match="stage 'reward_model' was made with other settings"):
        again.run_reward_training()
    again.run_reward_training(fresh=True)
    assert optimizer(other, "reward_model") == [1e-3]


def test_data_that_is_wrong_is_refused_before_anything_runs(done, tmp_path):
    rows = write(tmp_path / "pairs.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    out = tmp_path / "run"
    with pytest.raises(DataError, match=r"pairs.jsonl:1: chosen and rejected are the same, got 'b'"):
        create_rlhf_pipeline(done.fields | {"reward_data_path": rows, "save_dir": str(out)}).run_full_pipeline()
    assert not out.exists()


# ---- compiling


def test_what_is_left_out_is_the_preset_and_the_generated_demo():
    recipe = RLHFConfig().to_recipe().recipe
    assert (recipe.model.preset, recipe.model.path) == ("nano", None)
    assert {kind: source.type for kind, source in recipe.domain.sources().items()} == {
        "demonstrations": "chat_demo",
        "preferences": "chat_demo",
        "prompts": "chat_demo",
    }
    assert tuple(recipe.stages) == STAGES
    only = RLHFConfig(reward_data_path="pairs.csv").to_recipe().recipe.domain.sources()
    assert (only["preferences"].path, only["prompts"].type) == ("pairs.csv", "chat_demo")


def test_a_name_is_a_preset_or_a_path_and_a_mapping_is_a_recipes_model():
    model = RLHFConfig(model_name="micro").to_recipe().recipe.model
    assert (model.preset, model.path) == ("micro", None)
    assert RLHFConfig(model_name="org/model").to_recipe().recipe.model.path == "org/model"
    assert RLHFConfig(model_name={"adapter": {"rank": 4}}).to_recipe().recipe.model.adapter.rank == 4


PLUGIN = """
from typing import Literal
from rlkit.component import Component
from rlkit.config.models import CausalLMSettings
from rlkit.hookspecs import hookimpl

class NarrowSettings(CausalLMSettings):
    type: Literal["narrow_llama"] = "narrow_llama"
    width: int = 16

def create_model(settings, *, path=None, new_tokens=(), seed=0):
    from rlkit.models.load import LoadedModel, load_causal_lm
    from rlkit.models.tokenizer import byte_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed
    if path is not None:
        return load_causal_lm(settings, path=path, new_tokens=new_tokens, seed=seed)
    set_seed(seed)
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=settings.width, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )
    return LoadedModel(LlamaForCausalLM(config), tokenizer, [])

@hookimpl
def register_models():
    return [Component(NarrowSettings, create_model)]
"""


def test_a_plugins_own_architecture_goes_through_all_stages(done, tmp_path, monkeypatch):
    from rlkit.plugins import load_plugins

    (tmp_path / "acme_narrow.py").write_text(PLUGIN)
    info = tmp_path / "acme_narrow-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-narrow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rlkit]\nnarrow = acme_narrow\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RLKIT_PLUGINS", "narrow")
    load_plugins.cache_clear()
    try:
        fields = done.fields | {"model_name": {"type": "narrow_llama", "width": 24}, "tokenizer_path": None}
        pipeline = create_rlhf_pipeline(fields | {"save_dir": str(tmp_path / "run"), "ppo_iterations": 1})
        for made in (pipeline.run_sft(), pipeline.run_reward_training(), pipeline.run_ppo_training()):
            config = json.loads((made / "config.json").read_text())
            assert (config["model_type"], config["hidden_size"]) == ("llama", 24)
    finally:
        load_plugins.cache_clear()


# ---- wrong configurations


def problems(source):
    with pytest.raises(RecipeError) as error:
        create_rlhf_pipeline(source)
    return error.value.problems


def test_every_wrong_field_of_a_json_file_is_named_with_its_place(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{\n\t"sft_lr": "fast",\n\t"ppo_batchsize": 4,\n\t"ppo_epochs": true,\n\t"device": "tpu"\n}\n')
    found = problems(path)
    assert [line.partition("; ")[0].partition(" (known")[0] for line in found] == [
        f"{path}:2:12: sft_lr: expected a number, got 'fast'",
        f"{path}:3:2: ppo_batchsize: no such setting",
        f"{path}:4:16: ppo_epochs: expected a whole number, got true",
        f"{path}:5:12: device: must be 'auto', 'cuda', 'mps' or 'cpu', got 'tpu'",
    ]
    assert "did you mean 'ppo_batch_size'?" in found[1]


def test_a_yaml_file_serves_as_well(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("sft_lr: 1e-4\nlog_level: warning\n")
    config = create_rlhf_pipeline(path).config
    assert (config.sft_lr, config.log_level) == (1e-4, "WARNING")
    path.write_text("sft_lr: 1e-4\nsft_lr: 1e-5\n")
    assert problems(path) == (f"{path}:2:1: sft_lr: set twice, first in line 1; delete one",)


def test_a_mapping_is_checked_in_the_same_words():
    assert problems({"sft_lr": 0, "max_length": 3}) == (
        "RLHFConfig: sft_lr: must be > 0, got 0",
        "RLHFConfig: max_length: must be >= 16, got 3",
    )
    assert problems({"ppo_batch_size": 10, "ppo_mini_batch_size": 4}) == (
        "RLHFConfig: ppo_batch_size 10 is not a multiple of ppo_mini_batch_size 4; choose a multiple",
    )
    assert "model.layres: no such setting; did you mean 'layers'?" in problems({"model_name": {"layres": 2}})[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n  'a': 1\n}", ":2:3: not valid JSON: expecting property name"),
        ("[1]", ": a mapping of RLHFConfig's fields"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    assert message in problems(path)[0]


def test_a_file_that_is_not_there_is_named(tmp_path):
    assert "there is no such file" in problems(tmp_path / "none.json")[0]


def test_the_public_names_are_those_of_the_package():
    assert rlkit.RLHFPipeline is RLHFPipeline
    assert set(rlkit.__all__) == {"RLHFConfig", "RLHFPipeline", "create_rlhf_pipeline", "__version__"}
    with pytest.raises(AttributeError, match="has no attribute 'RLHFPipelin'"):
        rlkit.RLHFPipelin  # noqa: B018


def test_the_log_level_of_one_run_is_not_that_of_the_next(done):
    create_rlhf_pipeline(done.fields | {"log_level": "INFO"}).run_sft()
    assert logging.getLogger("rlkit").level == logging.INFO
