"""Scores: one number per occlusion from the logits of all classes, so that changing class or score costs nothing.

`heatmap` keeps logits and asks here; the planner and the tuner use the same functions to judge approximations.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from krypton.errors import BindError, unknown

ScoreKind: TypeAlias = Literal["probability", "logit", "margin"]
Activation: TypeAlias = Literal["softmax", "sigmoid", "none"]

SCORE_KINDS: tuple[ScoreKind, ...] = ("probability", "logit", "margin")
ACTIVATIONS: tuple[Activation, ...] = ("softmax", "sigmoid", "none")


def default_activation(outputs: int) -> Activation:
    """Softmax for two or more outputs, sigmoid for one."""
    return "softmax" if outputs > 1 else "sigmoid"


def score(logits: Tensor, target: int, kind: ScoreKind, activation: Activation) -> Tensor:
    """The scores of class `target`, float32 (...), from logits (..., K).

    A probability is the logit put through the activation (with "none", the logit itself). A margin is the logit less
    the logsumexp of the others; outputs that do not compete, sigmoid or a single one, have none: it is the logit.
    Raises BindError for a class, kind or activation that does not exist.
    """
    outputs = logits.shape[-1]
    if kind not in SCORE_KINDS:
        raise BindError(unknown("score", str(kind), SCORE_KINDS))
    if activation not in ACTIVATIONS:
        raise BindError(unknown("activation", str(activation), ACTIVATIONS))
    if not 0 <= target < outputs:
        raise BindError(f"class {target} does not exist: the model's outputs are 0 to {outputs - 1}")
    logits = logits.float()
    logit = logits[..., target]
    if kind == "probability" and activation == "softmax":
        return logits.softmax(-1)[..., target]
    if kind == "probability" and activation == "sigmoid":
        return logit.sigmoid()
    if kind == "margin" and activation != "sigmoid" and outputs > 1:
        others = torch.cat((logits[..., :target], logits[..., target + 1 :]), dim=-1)
        return logit - others.logsumexp(-1)
    return logit.clone()
