"""Running plans: `execute` gives an `Execution`, which yields the logits of occlusions batch by batch."""

from krypton.executor.engine import Batch
from krypton.executor.execution import Execution, execute, make_ready
from krypton.executor.pacing import Clock
from krypton.executor.reuse import Known

__all__ = ["Batch", "Clock", "Execution", "Known", "execute", "make_ready"]
