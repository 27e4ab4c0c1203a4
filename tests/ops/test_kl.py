"""Estimators of the divergence from the reference."""

import math

import pytest
import torch

from rlkit.ops.kl import kl_k1, kl_k2, kl_k3


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
