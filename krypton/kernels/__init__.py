"""How delta rules run on a device: kernels by the operator they serve. The planner chooses by name, the executor builds."""

from krypton.kernels import conv, fused, native_conv
from krypton.kernels.registry import DEFERRED, KERNELS, Kernel, able, choose, find, register_kernel

__all__ = ["DEFERRED", "KERNELS", "Kernel", "able", "choose", "conv", "find", "fused", "native_conv", "register_kernel"]
