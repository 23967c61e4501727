"""Measure whether the trained model's explanations mean something: does hiding the lesion change its mind most?

For held-out lesion scans that it classifies correctly, a grey patch is slid over the scan by full inferences (krypton
is not used), and the position at which the probability of the predicted class drops most is compared with the lesion's box.

    python examples/retina/evaluate.py [--patch 16] [--stride 8] [--scans 40]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from model import LABELS, RetinaNet, load
from numpy.typing import NDArray
from phantoms import Scan, generate
from train import GREY, HELD_OUT_SEEDS, predict


@dataclass(frozen=True)
class Finding:
    """The most sensitive position of one scan: its drop of probability, and how it lies to the lesion's box."""

    drop: float
    overlaps: bool
    """The patch and the box share a pixel."""
    hits: bool
    """The patch's centre lies within the box."""
    chance: float
    """Share of all positions that overlap the box: what guessing would give."""


def occlusion_map(model: RetinaNet, image: NDArray[np.uint8], patch: int, stride: int, label: int) -> NDArray[np.float32]:
    """Drop of the probability of class `label` at every position (rows, columns) of a grey patch on `image` (H, W)."""
    tops, lefts = (range(0, extent - patch + 1, stride) for extent in image.shape)
    occluded = np.repeat(image[None], len(tops) * len(lefts), axis=0)
    for index, (top, left) in enumerate((top, left) for top in tops for left in lefts):
        occluded[index, top : top + patch, left : left + patch] = GREY
    drops = predict(model, image[None])[0, label] - predict(model, occluded)[:, label]
    return np.asarray(drops.reshape(len(tops), len(lefts)))


def judge(drops: NDArray[np.float32], scan: Scan, patch: int, stride: int) -> Finding:
    """Compare the largest of `drops` (rows, columns) with the box of a lesion scan."""
    if scan.box is None:
        raise ValueError("only a scan with a lesion can be judged")
    top, left, height, width = scan.box
    grid = stride * np.indices(drops.shape)
    y, x = grid[0], grid[1]
    overlaps = (y < top + height) & (y + patch > top) & (x < left + width) & (x + patch > left)
    best = int(drops.argmax())
    centre_y, centre_x = y.flat[best] + patch / 2, x.flat[best] + patch / 2
    hits = top <= centre_y <= top + height and left <= centre_x <= left + width
    return Finding(float(drops.flat[best]), bool(overlaps.flat[best]), bool(hits), float(overlaps.mean()))


def main() -> None:
    """Print, for each lesion, how often the most sensitive position lies on it, and the median drop there."""
    parser = argparse.ArgumentParser(description="Check the retina model's occlusion maps against the lesions' boxes.")
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent / "retina.safetensors")
    parser.add_argument("--patch", type=int, default=16, help="pixels")
    parser.add_argument("--stride", type=int, default=8, help="pixels")
    parser.add_argument("--scans", type=int, default=40, help="held-out scans of each lesion")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load(arguments.weights).to(memory_format=torch.channels_last)
    every: list[Finding] = []
    print("lesion     scans  correct  on the box  centre in the box  by chance  median drop")
    for label in range(1, len(LABELS)):
        scans = [generate(LABELS[label], seed) for seed in HELD_OUT_SEEDS[: arguments.scans]]
        chosen = predict(model, np.stack([scan.image for scan in scans])).argmax(1)
        correct = [scan for scan, choice in zip(scans, chosen, strict=True) if choice == label]
        found = [
            judge(occlusion_map(model, scan.image, arguments.patch, arguments.stride, label), scan, **_grid(arguments))
            for scan in correct
        ]
        every += found
        _report(LABELS[label], len(scans), found)
    _report("all", 3 * arguments.scans, every)


def _grid(arguments: argparse.Namespace) -> dict[str, int]:
    return {"patch": arguments.patch, "stride": arguments.stride}


def _report(name: str, scans: int, found: list[Finding]) -> None:
    overlaps, hits, chance = (
        np.mean([getattr(finding, field) for finding in found]) for field in ("overlaps", "hits", "chance")
    )
    drop = np.median([finding.drop for finding in found])
    print(f"{name:10} {scans:5}  {len(found):7}  {overlaps:10.1%}  {hits:17.1%}  {chance:9.1%}  {drop:11.3f}", flush=True)


if __name__ == "__main__":
    main()
