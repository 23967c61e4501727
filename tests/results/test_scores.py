"""Scores: probabilities, logits and margins from logits, against their definitions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from krypton.errors import BindError
from krypton.results.scores import default_activation, score

LOGITS = torch.tensor([[1.0, 2.0, -1.0], [0.0, 500.0, -500.0]])


def test_a_softmax_probability_is_the_share_of_exponentials() -> None:
    expected = math.exp(2) / (math.exp(1) + math.exp(2) + math.exp(-1))
    found = score(LOGITS, 1, "probability", "softmax")
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([expected, 1.0])


def test_a_sigmoid_probability_looks_at_its_own_logit_alone() -> None:
    assert score(LOGITS, 1, "probability", "sigmoid")[0].item() == pytest.approx(1 / (1 + math.exp(-2)))
    assert score(torch.tensor([0.0]), 0, "probability", "sigmoid").item() == 0.5


def test_without_activation_a_probability_is_the_logit() -> None:
    assert torch.equal(score(LOGITS, 2, "probability", "none"), LOGITS[:, 2])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_a_logit_is_a_logit_whatever_the_activation(activation: Any) -> None:
    assert torch.equal(score(LOGITS, 1, "logit", activation), LOGITS[:, 1])


def test_a_margin_is_the_logit_less_the_logsumexp_of_the_others() -> None:
    expected = [2 - math.log(math.exp(1) + math.exp(-1)), 500.0]
    assert score(LOGITS, 1, "margin", "softmax").tolist() == pytest.approx(expected)
    assert score(LOGITS, 1, "margin", "none").tolist() == pytest.approx(expected)


def test_a_softmax_margin_is_the_log_odds_of_the_probability() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    probability = score(logits, 3, "probability", "softmax")
    torch.testing.assert_close(score(logits, 3, "margin", "softmax"), torch.logit(probability), rtol=1e-4, atol=1e-5)


def test_outputs_that_do_not_compete_have_their_logit_as_margin() -> None:
    assert torch.equal(score(LOGITS, 1, "margin", "sigmoid"), LOGITS[:, 1])
    assert score(torch.tensor([3.0]), 0, "margin", "none").item() == 3


def test_unknown_positions_stay_unknown() -> None:
    logits = torch.full((2, 3), torch.nan)
    for kind in ("probability", "logit", "margin"):
        assert score(logits, 0, kind, "softmax").isnan().all()  # type: ignore[arg-type]


def test_scores_are_copies() -> None:
    logits = LOGITS.clone()
    score(logits, 1, "logit", "softmax").zero_()
    assert torch.equal(logits, LOGITS)


@pytest.mark.parametrize(
    ("target", "kind", "activation", "message"),
    [
        (3, "logit", "softmax", "class 3 does not exist: the model's outputs are 0 to 2"),
        (-1, "logit", "softmax", "class -1 does not exist"),
        (0, "probabilty", "softmax", 'Did you mean "probability"'),
        (0, "logit", "softmaxx", 'Did you mean "softmax"'),
    ],
)
def test_what_does_not_exist_is_refused_in_words(target: int, kind: Any, activation: Any, message: str) -> None:
    with pytest.raises(BindError, match=message):
        score(LOGITS, target, kind, activation)


def test_one_output_is_a_sigmoid_and_several_a_softmax() -> None:
    assert [default_activation(k) for k in (1, 2, 1000)] == ["sigmoid", "softmax", "softmax"]
