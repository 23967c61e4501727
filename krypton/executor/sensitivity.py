"""How much the scores suffer from an error of each convolution: one backward pass over a few occluded images.

A convolution in low precision adds to each of its outputs an error that is about independent of all others, and as large as a
share of what the products there add up to: Σ w² Δx², under the root. What such errors do to a score is its gradient, so that
the relative error of the score changes per relative error of the convolution is

    √( Σ (∂s/∂y)² · Σ w² Δx²  /  Σ (change of s)² )

over all outputs y, with the sum of products averaged over output channels. That is one pass for all layers, where trying them
costs one each; what the pass cannot see (large errors, the errors of sums) the trial of the whole assignment corrects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from krypton.executor.precision import Scores
from krypton.ir.graph import Graph, Node
from krypton.ir.weights import Reference
from krypton.operators.base import channels_last, operator_of
from krypton.operators.combine import apply_epilogue
from krypton.planner.whole import WholeBatch, last_uses, run_node


def sensitivities(
    graph: Graph, weight: Callable[[Reference], Tensor], images: Tensor, scores: Scores, asked: Collection[int]
) -> dict[int, float]:
    """Relative error of the score changes per relative error of a convolution, for the nodes that are `asked` for.

    `images` (1 + n, C, H, W) are the unmodified one and some that are occluded. Several scores are summed with random signs:
    the square of the sum's gradient then is, on average, the sum of squares. Raises RuntimeError where an operator has no
    gradient.
    """
    with torch.enable_grad():
        logits, probes = _forward(graph, weight, channels_last(images), set(asked))
        found = scores(logits)
        changes = (found[1:] - found[:1]).detach()
        size = changes.square().sum(0).sqrt()
        signs = torch.randint(0, 2, changes.shape, generator=torch.Generator().manual_seed(0)).to(changes) * 2 - 1
        weights = torch.where(size > 0, signs / size.clamp(min=1e-30), 0.0) / max(int((size > 0).sum()), 1) ** 0.5
        own = [result for _, _, result in probes]
        gradients = torch.autograd.grad((found[1:] * weights).sum(), own, allow_unused=True)
    answer = dict.fromkeys(asked, 0.0)
    with torch.no_grad():
        for (node, inputs, _), gradient in zip(probes, gradients, strict=True):
            if gradient is not None:
                answer[node.id] = float(_error(node, inputs, gradient, weight(node.weights["weight"])))
    return answer


def _forward(
    graph: Graph, weight: Callable[[Reference], Tensor], images: Tensor, asked: set[int]
) -> tuple[Tensor, list[tuple[Node, Tensor, Tensor]]]:
    """Logits, and of the nodes asked for the input and the result of their own arithmetic."""
    whole = WholeBatch(len(images), images.device, weight)
    nodes = graph.nodes[1:]
    last, values = last_uses(nodes), {graph.image.id: images.requires_grad_()}
    probes = []
    for place, node in enumerate(nodes):
        inputs = [values[source] for source in node.inputs]
        if node.id in asked:
            own = operator_of(node).full(node, inputs[:1], whole)
            probes.append((node, inputs[0].detach(), own))
            values[node.id] = own if node.epilogue is None else apply_epilogue(node.epilogue, own, inputs, weight)[1]
        else:
            values[node.id] = run_node(node, inputs, whole)[1]
        for source in set(node.inputs):
            if last[source] == place and source != graph.output:
                values.pop(source, None)
    return values[graph.output].float(), probes


def _error(node: Node, inputs: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """The root of one convolution, from its `inputs` (1 + n, C, H, W) and the `gradient` (1 + n, K, h, w) of its results."""
    groups = node.attrs["groups"]
    squares = (inputs[1:] - inputs[:1]).square()
    mean = weight.square().view(groups, -1, *weight.shape[1:]).mean(1)
    top, bottom, left, right = node.attrs["padding"]
    padded = F.pad(squares, (left, right, top, bottom))
    products = F.conv2d(padded, mean, None, node.attrs["stride"], 0, node.attrs["dilation"], groups)
    count, _, *size = gradient[1:].shape
    slope = gradient[1:].square().reshape(count, groups, -1, *size).sum(2)
    return (slope * products).sum().sqrt()
