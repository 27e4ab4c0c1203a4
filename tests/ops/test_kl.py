"""Estimators of the divergence from the reference."""

import math
from types import SimpleNamespace

import pytest
import torch
from peers import OPENRLHF_UTILS, TRL_PPO, assignments, definitions

from rlkit.ops.kl import kl_abs, kl_full, kl_k1, kl_k2, kl_k3
from rlkit.ops.logprobs import log_distribution


def test_estimators_of_a_token_that_the_policy_likes_twice_as_much() -> None:
    # policy .5, reference .25: r = reference / policy = 1/2, log r = -ln 2
    policy, reference = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    assert kl_k1(policy, reference).item() == pytest.approx(math.log(2))
    assert kl_k2(policy, reference).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_k3(policy, reference).item() == pytest.approx(0.5 - 1 + math.log(2))


def test_k1_and_k3_average_to_the_divergence() -> None:
    policy, reference = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).double().log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    for estimator in (kl_k1, kl_k3):  # the expectation under the policy, summed over all tokens instead of sampled
        torch.testing.assert_close((policy.exp() * estimator(policy, reference)).sum(), exact)


def test_near_the_reference_k3_is_exact_and_never_negative() -> None:
    difference = torch.tensor([1e-3, -1e-3, 1e-2])
    # the Taylor series x^2 / 2 + x^3 / 6 with x = log r = -difference
    expected = difference.double() ** 2 / 2 - difference.double() ** 3 / 6
    result = kl_k3(difference, torch.zeros(3))
    assert (result >= 0).all()
    torch.testing.assert_close(result.double(), expected, rtol=1e-3, atol=0)


def test_only_k2_and_k3_pull_towards_the_reference() -> None:
    for estimator, gradient in ((kl_k1, [1.0, 1.0]), (kl_k2, [1.0, -1.0]), (kl_k3, [1 - math.exp(-1), 1 - math.e])):
        logprobs = torch.tensor([-1.0, -3.0], requires_grad=True)  # above and below a reference of -2
        estimator(logprobs, torch.full((2,), -2.0)).sum().backward()
        assert logprobs.grad is not None
        torch.testing.assert_close(logprobs.grad, torch.tensor(gradient))


def test_abs_is_the_size_of_k1() -> None:
    policy, reference = torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -2.5])
    assert kl_abs(policy, reference).tolist() == [1.0, 0.5]


def test_the_full_divergence_worked_by_hand() -> None:
    # policy 1/2, 1/2, 0; reference 1/4, 3/4, 0: .5 ln 2 + .5 ln (2/3)
    policy, reference = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert kl_full(policy, reference).item() == pytest.approx(expected)
    assert kl_full(policy, policy).item() == 0.0


def test_the_full_divergence_is_infinite_where_the_reference_excludes_what_the_policy_does() -> None:
    policy, reference = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
    assert kl_full(policy, reference).item() == torch.inf
    assert kl_full(reference, policy).item() == pytest.approx(math.log(2))


def test_candidates_that_are_not_allowed_change_nothing_and_get_no_gradient() -> None:
    logits = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    allowed = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.6
    allowed[0] = False  # a row of padding
    logits[1, ~allowed] = torch.nan  # whatever the reference has there
    policy_logits = logits[0].clone().requires_grad_()
    # beside torch's own divergence over the allowed candidates only
    for row in range(1, 4):
        kept = [values[row, allowed[row]].log_softmax(-1) for values in logits]
        expected = torch.nn.functional.kl_div(kept[1], kept[0], reduction="sum", log_target=True)
        masked = [log_distribution(values[row], allowed[row]) for values in (policy_logits, logits[1])]
        torch.testing.assert_close(kl_full(*masked), expected)
        infinite = [values.masked_fill(~allowed[row], -torch.inf) for values in masked]
        torch.testing.assert_close(kl_full(*infinite), expected)
    whole = kl_full(log_distribution(policy_logits, allowed), log_distribution(logits[1], allowed))
    assert whole[0] == 0
    (grad,) = torch.autograd.grad(whole.sum(), policy_logits)
    assert (grad[~allowed] == 0).all()
    assert (grad[allowed] != 0).any()


def test_the_full_divergence_pulls_towards_the_reference() -> None:
    logits = torch.zeros(3, requires_grad=True)
    reference = torch.tensor([0.7, 0.2, 0.1]).log()
    kl_full(logits.log_softmax(-1), reference).backward()
    # d KL / d logit_i = p_i (log p_i - log q_i - KL): down where the policy is above the reference
    share = torch.full((3,), 1 / 3)
    difference = share.log() - reference
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, share * (difference - (share * difference).sum()))


def test_estimators_agree_with_openrlhf_and_trl() -> None:
    theirs = definitions(OPENRLHF_UTILS, "compute_approx_kl", KL_IS_WEIGHT_CLIP=10.0).compute_approx_kl
    policy, reference = -torch.rand(2, 100, generator=torch.Generator().manual_seed(0))
    for name, estimator in (("k1", kl_k1), ("k2", kl_k2), ("k3", kl_k3)):
        expected = theirs(policy, reference, kl_estimator=name)
        torch.testing.assert_close(estimator(policy, reference), expected, rtol=0, atol=1e-6)
    for name, estimator in (("k1", kl_k1), ("k3", kl_k3)):
        args = SimpleNamespace(kl_estimator=name)
        trl = assignments(TRL_PPO, "train", {"logr", "kl"}, args=args, logprobs=policy, ref_logprobs=reference)
        torch.testing.assert_close(estimator(policy, reference), trl.kl, rtol=0, atol=1e-6)
