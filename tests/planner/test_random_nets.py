"""Random CNNs of all operators, random occlusions: exact answers, every delta checked against whole differences.

`HYPOTHESIS_PROFILE=hunt pytest tests/planner/test_random_nets.py` looks for longer (see tests/conftest.py).
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given
from support.judge import Oracle, run_plan, settings_of
from support.random_nets import Case, cases, occlusions

from krypton.ir.serde import plan_from_json, plan_to_json
from krypton.planner.capture import capture
from krypton.planner.cost import DeviceProfile
from krypton.planner.optimizer import plan_query
from krypton.planner.rules import RULES

NAMES = [rule.name for rule in RULES]
# where only arithmetic counts, increments end in the middle of small nets, too
PROFILES = st.sampled_from([DeviceProfile(), DeviceProfile(multiply_adds_per_ms=1e3, bytes_per_ms=1e15, node_overhead_ms=0.0)])
SWITCHES = st.fixed_dictionaries(
    {
        "disabled_rules": st.lists(st.sampled_from(NAMES), max_size=4, unique=True),
        "kernels": st.sampled_from(["auto", "auto", "reference"]),
        "batch": st.sampled_from([0, 0, 1, 3]),
    }
)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(st.data(), cases(), st.lists(SWITCHES, min_size=1, max_size=3))
def test_random_nets_are_exact(data: st.DataObject, case: Case, switches: list[dict[str, object]]) -> None:
    net, (image, fill) = case.net(), case.tensors()
    captured = capture(net, case.image)
    asked = [case.occlusions, *(data.draw(occlusions(case.image[1:])) for _ in switches[1:])]
    for occluded, values in zip(asked, switches, strict=True):
        # on maps as small as these whole ones are often cheaper, but it is the increments that are tried
        disabled = values["disabled_rules"]
        assert isinstance(disabled, list)
        if data.draw(st.integers(0, 2)):
            values = values | {"disabled_rules": sorted({*disabled, "full_when_cheaper"})}
        plan = plan_query(captured, occluded, settings=settings_of(values), profile=data.draw(PROFILES))
        plan = plan_from_json(plan_to_json(plan))
        logits = run_plan(plan, captured, image, fill, settings_of(values))
        Oracle(net, image, fill, occluded).judge(logits)
