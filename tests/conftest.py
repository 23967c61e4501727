"""How many examples hypothesis tries: few in CI; `HYPOTHESIS_PROFILE=hunt pytest tests/planner` looks for bugs for longer.

And Ctrl-C is heard wherever tests run: programs in the background are born with it ignored.
"""

import os
import signal

from hypothesis import HealthCheck, Phase, settings

_slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example, HealthCheck.filter_too_much]

settings.register_profile("ci", max_examples=40, deadline=None, derandomize=True, suppress_health_check=_slow)
settings.register_profile("hunt", max_examples=2000, deadline=None, suppress_health_check=_slow)
settings.register_profile(
    "hunt-unshrunk", max_examples=2000, deadline=None, suppress_health_check=_slow, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
