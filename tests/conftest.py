"""How many examples hypothesis tries: few in CI; `HYPOTHESIS_PROFILE=hunt pytest tests/planner` looks for bugs for longer."""

import os

from hypothesis import HealthCheck, Phase, settings

_slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example, HealthCheck.filter_too_much]

settings.register_profile("ci", max_examples=40, deadline=None, derandomize=True, suppress_health_check=_slow)
settings.register_profile("hunt", max_examples=2000, deadline=None, suppress_health_check=_slow)
settings.register_profile(
    "hunt-unshrunk", max_examples=2000, deadline=None, suppress_health_check=_slow, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
