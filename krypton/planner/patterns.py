"""Patterns of several ATen calls that are one operator, for `recognise`."""

from __future__ import annotations

import operator

from torch import fx

IDENTITIES = frozenset(
    {
        "aten.alias.default",
        "aten.clone.default",
        "aten.contiguous.default",
        "aten.detach.default",
        "aten.lift_fresh_copy.default",
    }
)
"""Calls that return their first argument's values, in the same layout."""


def shuffle_groups(fx_node: fx.Node) -> tuple[fx.Node, int] | None:
    """view (B, g, C/g, H, W), transpose(1, 2), view (B, C, H, W): the shuffled node and g."""
    if not _is(fx_node, "view", "reshape", "_unsafe_view"):
        return None
    inner = fx_node.args[0]
    while _is(inner, "clone", "contiguous"):
        inner = inner.args[0]  # type: ignore[union-attr]
    if not isinstance(inner, fx.Node) or not _swaps_groups(inner):
        return None
    grouped = inner.args[0]
    if not isinstance(grouped, fx.Node) or not _is(grouped, "view", "reshape"):
        return None
    source = grouped.args[0]
    if not isinstance(source, fx.Node):
        return None
    shape, split, result = (node.meta["val"].shape for node in (source, grouped, fx_node))
    if len(shape) != 4 or len(split) != 5 or tuple(result[1:]) != tuple(shape[1:]):
        return None
    if split[1] * split[2] != shape[1] or tuple(split[3:]) != tuple(shape[2:]) or str(split[0]) != str(shape[0]):
        return None
    return source, int(split[1])


def response_norm(fx_node: fx.Node) -> tuple[fx.Node, dict[str, float]] | None:
    """x / (k + alpha · mean of x² over channels)^beta as PyTorch writes local response norm: x and the four numbers."""
    if str(fx_node.target) != "aten.div.Tensor":
        return None
    source, power = fx_node.args
    chain = _arguments(power, "pow.Tensor_Scalar", "add.Tensor", "mul.Tensor")
    if chain is None or not isinstance(source, fx.Node):
        return None
    inner, (beta, k, alpha) = chain
    pooled = _arguments(inner, "view.default", "squeeze.dim", "avg_pool3d.default")
    padded = None if pooled is None else _arguments(pooled[0], "pad.default", "view.default", "mul.Tensor")
    if pooled is None or padded is None or padded[0] is not source or padded[1][2] is not source:
        return None
    if len(source.meta["val"].shape) != 4 or not all(isinstance(number, (int, float)) for number in (alpha, beta, k)):
        return None
    kernel = pooled[1][2]
    if not isinstance(kernel, (list, tuple)) or list(kernel[1:]) != [1, 1]:
        return None
    size = int(kernel[0])
    if padded[1][0] != [0, 0, 0, 0, size // 2, (size - 1) // 2]:
        return None
    return source, {"size": size, "alpha": float(alpha), "beta": float(beta), "k": float(k)}  # type: ignore[arg-type]


def _arguments(node: object, *targets: str) -> tuple[object, tuple[object, ...]] | None:
    """Along a chain of calls, each on the next one's result: what the last is called on, and all second arguments."""
    seconds = []
    for target in targets:
        if not isinstance(node, fx.Node) or str(node.target) != f"aten.{target}" or len(node.args) < 2:
            return None
        seconds.append(node.args[1])
        node = node.args[0]
    return node, tuple(seconds)


def channel_pieces(fx_node: fx.Node, target: str, shape: tuple[int, ...]) -> list[tuple[int, int]] | None:
    """The channel intervals of a split or chunk along the channels of a map."""
    if len(shape) != 3 or not target.startswith(("aten.split", "aten.chunk")):
        return None
    sizes = fx_node.args[1]
    dim = fx_node.args[2] if len(fx_node.args) > 2 else fx_node.kwargs.get("dim", 0)
    channels = shape[0]
    if dim not in (1, -3):
        return None
    if isinstance(sizes, int):
        step = -(-channels // sizes) if target.startswith("aten.chunk") else sizes
        return [(start, min(start + step, channels)) for start in range(0, channels, step)]
    bounds, start = [], 0
    for size in sizes:  # type: ignore[union-attr]
        if not isinstance(size, int):
            return None
        bounds.append((start, start + size))
        start += size
    return bounds


def selected_channel(fx_node: fx.Node) -> tuple[fx.Node, int] | None:
    """unsqueeze(x[:, c], 1), as torchvision's Inception and GoogLeNet take their input apart: x and c."""
    if not _is(fx_node, "unsqueeze") or fx_node.args[1] not in (1, -3):
        return None
    inner = fx_node.args[0]
    if not isinstance(inner, fx.Node) or str(inner.target) != "aten.select.int" or inner.args[1] not in (1, -3):
        return None
    source, _, channel = inner.args
    if not isinstance(source, fx.Node) or source.meta["val"].dim() != 4 or not isinstance(channel, int):
        return None
    return source, channel % int(source.meta["val"].shape[1])


def _is(node: object, *names: str) -> bool:
    return isinstance(node, fx.Node) and str(node.target) in {f"aten.{name}.default" for name in names}


def _swaps_groups(node: fx.Node) -> bool:
    if str(node.target) == "aten.transpose.int":
        return tuple(sorted(map(operator.index, node.args[1:3]))) == (1, 2)  # type: ignore[arg-type]
    return str(node.target) == "aten.permute.default" and list(node.args[1]) == [0, 2, 1, 3, 4]  # type: ignore[arg-type]
