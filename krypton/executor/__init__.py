"""Running plans: `execute` gives an `Execution`, which yields the logits of occlusions batch by batch."""

from krypton.executor.engine import Batch
from krypton.executor.execution import Execution, execute

__all__ = ["Batch", "Execution", "execute"]
