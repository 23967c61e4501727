"""Running plans: `execute` gives an `Execution`, which yields the logits of occlusions batch by batch."""

from krypton.executor.execution import Batch, Execution, execute

__all__ = ["Batch", "Execution", "execute"]
