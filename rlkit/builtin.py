"""rlkit's own components, through the hooks that every plugin uses."""

from __future__ import annotations

from collections.abc import Iterable

from rlkit.component import Component
from rlkit.config import (
    algorithms,
    arithmetic,
    chat,
    domains,
    engines,
    models,
    ppo,
    preferences,
    process_rewards,
    python_tasks,
    quantizers,
    recommendation_data,
    reinforce,
    reward_models,
    rewards,
    rollouts,
    rules,
    stages,
    verifiers,
    verifiers_code,
)
from rlkit.hookspecs import hookimpl


@hookimpl
def register_stages() -> Iterable[Component]:
    """Return the built-in stages."""
    return [
        Component(stages.SemanticIdsStageSettings, "rlkit.recsys.stage:semantic_ids"),
        Component(stages.TrainStageSettings, "rlkit.stages:train"),
        Component(stages.EvaluateStageSettings, "rlkit.stages:evaluate"),
    ]


@hookimpl
def register_algorithms() -> Iterable[Component]:
    """Return the built-in algorithms."""
    return [
        Component(algorithms.SFTSettings, "rlkit.algorithms.sft:sft"),
        Component(reward_models.RewardModelSettings, "rlkit.algorithms.reward_model:reward_model"),
        Component(
            process_rewards.ProcessRewardModelSettings, "rlkit.algorithms.process_reward_model:process_reward_model"
        ),
        Component(preferences.DPOSettings, "rlkit.algorithms.dpo:dpo"),
        Component(algorithms.GRPOSettings, "rlkit.algorithms.grpo:grpo"),
        Component(reinforce.RLOOSettings, "rlkit.algorithms.rloo:rloo"),
        Component(reinforce.ReinforcePPSettings, "rlkit.algorithms.reinforce:reinforce_pp"),
        Component(ppo.PPOSettings, "rlkit.algorithms.ppo:ppo"),
    ]


@hookimpl
def register_domains() -> Iterable[Component]:
    """Return the built-in domains."""
    return [
        Component(domains.RecommendationSettings, "rlkit.recsys.domain:recommendation_domain"),
        Component(chat.ChatSettings, "rlkit.chat.domain:chat_domain"),
    ]


@hookimpl
def register_models() -> Iterable[Component]:
    """Return the built-in models."""
    return [Component(models.CausalLMSettings, "rlkit.models.load:load_causal_lm")]


@hookimpl
def register_rewards() -> Iterable[Component]:
    """Return the built-in rewards."""
    return [
        Component(rewards.ItemMatchSettings, "rlkit.recsys.rewards:item_match"),
        Component(rewards.RankDiscountSettings, "rlkit.recsys.rewards:rank_discount"),
        Component(rewards.PrefixMatchSettings, "rlkit.recsys.rewards:prefix_match"),
        Component(rewards.AttributeMatchSettings, "rlkit.recsys.rewards:attribute_match"),
        Component(rewards.ExactMatchSettings, "rlkit.chat.rewards:exact_match"),
        Component(verifiers_code.CodeSettings, "rlkit.chat.verifiers.code:code"),
        Component(verifiers.MathSettings, "rlkit.chat.verifiers.math_reward:math"),
        Component(verifiers.PythonSettings, "rlkit.chat.verifiers.python_function:python_function"),
        Component(verifiers.HttpSettings, "rlkit.chat.verifiers.http_reward:HttpReward"),
        Component(rules.FormatSettings, "rlkit.chat.verifiers.text_form:format_reward"),
        Component(rules.ChecklistSettings, "rlkit.chat.verifiers.checklist:checklist"),
        Component(rules.DiversitySettings, "rlkit.chat.verifiers.text_measures:Diversity"),
        Component(rules.RepetitionSettings, "rlkit.chat.verifiers.text_measures:repetition"),
        Component(rules.LengthPenaltySettings, "rlkit.chat.verifiers.text_measures:LengthPenalty"),
        Component(rules.LanguageConsistencySettings, "rlkit.chat.verifiers.text_measures:language_consistency"),
        Component(reward_models.LearnedRewardSettings, "rlkit.reward_models.scorer:learned_reward"),
        Component(process_rewards.ProcessRewardSettings, "rlkit.reward_models.process:process_reward"),
    ]


@hookimpl
def register_loss_terms() -> Iterable[Component]:
    """Return the built-in terms of a reward model's loss."""
    return [Component(reward_models.RewardNormSettings, "rlkit.reward_models.loss_terms:reward_norm")]


@hookimpl
def register_data_formats() -> Iterable[Component]:
    """Return the built-in readers."""
    return [
        Component(recommendation_data.MiniOneRecDataSettings, "rlkit.recsys.data.minionerec:read_minionerec"),
        Component(recommendation_data.DemoDataSettings, "rlkit.recsys.data.demo:generate_demo"),
        Component(chat.ChatFilesSettings, "rlkit.chat.data.read:read_files"),
        Component(chat.ChatDemoSettings, "rlkit.chat.data.demo:generate_demo"),
        Component(arithmetic.ArithmeticSettings, "rlkit.chat.data.arithmetic:generate_arithmetic"),
        Component(python_tasks.PythonTasksSettings, "rlkit.chat.data.python_tasks:generate_python_tasks"),
    ]


@hookimpl
def register_quantizers() -> Iterable[Component]:
    """Return the built-in makers of semantic IDs."""
    return [
        Component(quantizers.GivenSettings, "rlkit.recsys.semantic_ids:given_ids"),
        Component(quantizers.ResidualKMeansSettings, "rlkit.recsys.quantizers.residual_kmeans:residual_kmeans_ids"),
    ]


@hookimpl
def register_rollouts() -> Iterable[Component]:
    """Return the built-in ways to complete prompts."""
    return [
        Component(rollouts.BeamSettings, "rlkit.policy.sampler:BeamRollout"),
        Component(rollouts.SampleSettings, "rlkit.policy.sampler:SampleRollout"),
    ]


@hookimpl
def register_engines() -> Iterable[Component]:
    """Return the built-in engines."""
    return [
        Component(engines.LocalSettings, "rlkit.engines.local:LocalEngine"),
        Component(engines.DeepSpeedSettings, "rlkit.engines.deepspeed:DeepSpeedEngine"),
    ]
