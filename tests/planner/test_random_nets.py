"""Random CNNs of all operators, random occlusions: exact answers, every delta checked against whole differences."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given
from support.judge import Oracle, run_plan, settings_of
from support.random_nets import Case, cases

from krypton.ir.serde import plan_from_json, plan_to_json
from krypton.planner.capture import capture
from krypton.planner.optimizer import plan_query
from krypton.planner.rules import RULES

SWITCHES = st.lists(st.sampled_from([rule.name for rule in RULES if rule.name != "full_when_cheaper"]), max_size=3)


@given(cases(), SWITCHES, st.sampled_from([True, True, True, False]), st.sampled_from(["auto", "auto", "reference"]))
def test_random_nets_are_exact(case: Case, disabled: list[str], all_increments: bool, kernels: str) -> None:
    if all_increments:  # on maps as small as these, whole ones are often cheaper
        disabled = [*disabled, "full_when_cheaper"]
    _check(case, {"disabled_rules": disabled, "kernels": kernels})


def _check(case: Case, values: dict[str, object]) -> None:
    net, (image, fill) = case.net(), case.tensors()
    captured = capture(net, case.image)
    plan = plan_query(captured, case.occlusions, settings=settings_of(values))
    plan = plan_from_json(plan_to_json(plan))
    logits = run_plan(plan, captured, image, fill, settings_of(values))
    Oracle(net, image, fill, case.occlusions).judge(logits)
