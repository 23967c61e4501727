"""The model zoo: are all CNNs of torchvision and many of timm captured, incremental, and exact? `python -m benchmarks.zoo`.

Every model gets calibrated batch norms, a small input, and a few patches; its logits are judged against float64 inference by
the rule of exactness: |logits − reference| ≤ 1e-4 × the largest change of that logit + 10 × the error of float32 inference.
Writes a table as it goes, so that an interrupted run keeps what it has.
"""

from __future__ import annotations

import argparse
import gc
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.record import write_text
from krypton.errors import CaptureError
from krypton.executor import execute
from krypton.ir.occlusions import Grid
from krypton.planner.capture import capture
from krypton.planner.explain import summarise
from krypton.planner.optimizer import plan_query

SIZE = 128
SIZES = {"inception_v3": 160, "vit": 224, "swin": 224, "maxvit": 224}  # by beginning of the name
TOO_LARGE = ("vit_h_14", "vit_l", "regnet_y_128gf")  # for the memory and minutes of a small machine
TIMM = (
    "resnetblur50", "resnest14d", "hrnet_w18_small", "tf_efficientnet_lite0", "tf_efficientnetv2_b0", "mixnet_s",
    "ghostnet_100", "legacy_seresnet18", "dla34", "nfnet_l0", "cspresnet50", "rexnet_100", "selecsls42b",
    "skresnet18", "res2net50_26w_4s", "dpn68", "xception41", "repvgg_a0", "mobilenetv4_conv_small", "convnextv2_atto",
    "inception_resnet_v2", "tresnet_m", "vovnet39a", "hardcorenas_a", "fbnetc_100", "spnasnet_100", "lcnet_050", "regnetx_002",
    "gernet_s", "resnetv2_50", "edgenext_xx_small", "poolformerv2_s12", "vit_tiny_patch16_224",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What was found about one model; `error` is the worst logit's error as a share of what exactness allows."""

    name: str
    size: int
    nodes: int = 0
    ends: str = ""
    error: float | None = None
    arithmetic: float | None = None
    seconds: float = 0.0
    refused: str = ""

    @property
    def row(self) -> str:
        if self.refused:
            return f"| {self.name} | {self.size} | – | – | – | naive: {self.refused} | {self.seconds:.1f} |"
        ratio = "–" if self.arithmetic is None else f"{self.arithmetic:.2f}×"
        error = "–" if self.error is None else f"{self.error:.3f}"
        cells = self.name, self.size, self.nodes, ratio, error, self.ends or "to the end", f"{self.seconds:.1f}"
        return "| " + " | ".join(map(str, cells)) + " |"


HEAD = """# Models that were tried

Written by `make zoo`. *Arithmetic*: how many times fewer multiply-adds than full inference, patch 16, stride 16, at this small
input (more at larger ones). *Error*: the worst logit's error against float64 inference, as a share of what exactness allows
(1e-4 of the largest change, and ten times the error of float32 inference itself); below 1 is exact.

| model | input | operators | arithmetic | error | increments | capture s |
|---|---|---|---|---|---|---|
"""


def build(name: str, size: int) -> nn.Module:
    """The model with random weights and batch norms calibrated on noise."""
    import timm
    import torchvision

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name.startswith("timm:"):
            model: nn.Module = timm.create_model(name.removeprefix("timm:"), num_classes=20)
        else:
            extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
            model = torchvision.models.get_model(name, num_classes=20, **extra)
    norms = [m for m in model.eval().modules() if isinstance(m, nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.momentum = None
            norm.train()  # just these: auxiliary heads want larger inputs
        with torch.no_grad():
            model(torch.randn(4, 3, size, size))
    return model.eval()


def try_model(name: str) -> Finding:
    """Capture, plan, run on a few patches, and judge."""
    bare = name.removeprefix("timm:")
    size = next((s for start, s in SIZES.items() if bare.startswith(start)), SIZE)
    model = build(name, size)
    started = time.perf_counter()
    try:
        captured = capture(model, (3, size, size))
    except CaptureError as error:
        return Finding(name, size, seconds=time.perf_counter() - started, refused=str(error)[:100].replace("|", "/"))
    seconds = time.perf_counter() - started
    plan = plan_query(captured, Grid((size, size), (16, 16), (16, 16), (size - 48, 16, 48, 48)))
    assert plan.tensor is not None
    graph, summary = plan.tensor.graph, summarise(plan)
    notes = [note for note in plan.notes if note.startswith("increments end")]
    opaque = Counter(str(n.attrs["target"]) for n in graph if n.op == "opaque")
    ends = notes[0].removeprefix("increments end ").split(":")[0] if notes else ""
    if not notes and not opaque and any("full inference is cheaper" in note for note in plan.notes):
        ends = "full inference is cheaper at this size"
    image = torch.randn(3, size, size, generator=torch.Generator().manual_seed(1))
    # not zero: it makes whole regions zero in untrained models without biases, and layer norms blow up rounding errors there
    fill = torch.tensor([0.07, 0.2, 0.43])[:, None, None].expand(3, size, size)
    worst = _error(model, captured.weights, plan, image, fill)
    return Finding(name, size, len(graph), ends, worst, summary.arithmetic if summary else None, seconds)


@torch.no_grad()
def _error(model: nn.Module, weights: object, plan: object, image: Tensor, fill: Tensor) -> float:
    from krypton.executor.occluder import Occluder

    mine = torch.empty(0)
    run = execute(plan, image, fill, weights=weights)  # type: ignore[arg-type]
    for batch in run:
        if not len(mine):
            mine = torch.zeros(plan.occlusions.count, batch.logits.shape[1])  # type: ignore[attr-defined]
        mine[batch.indices] = batch.logits
    occluder = Occluder(plan.occlusions, image, fill)  # type: ignore[attr-defined]
    images = occluder.images(range(len(mine)))
    naive = model(images).double()
    base32 = model.double()(image[None].double())
    reference = model(images.double())
    allowed = 1e-4 * (reference - base32).abs().amax(0) + 10 * (naive - reference).abs().amax(0)
    return float(((mine.double() - reference).abs().amax(0) / allowed.clamp(min=1e-12)).max())


def names() -> list[str]:
    import torchvision

    listed = torchvision.models.list_models(module=torchvision.models)
    return [n for n in listed if not n.startswith(TOO_LARGE)] + [f"timm:{name}" for name in TIMM]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", help="names (default: all)")
    parser.add_argument("--out", type=Path, default=Path("docs/zoo.md"))
    arguments = parser.parse_args()
    console, rows, bad = Console(width=160), [], 0
    for name in arguments.models or names():
        finding = try_model(name)
        console.print(finding.row, highlight=False)
        rows.append(finding.row)
        bad += bool(finding.error is not None and finding.error > 1)
        write_text(arguments.out, HEAD + "\n".join(rows) + "\n")
        gc.collect()
    if bad:
        raise SystemExit(f"{bad} models are not exact")


if __name__ == "__main__":
    main()
