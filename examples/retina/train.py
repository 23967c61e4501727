"""Train RetinaNet on synthetic scans: writes `retina.safetensors` and `labels.txt`, prints accuracy held out.

An occlusion explanation asks what the model says once the lesion is hidden, so hidden lesions are trained on as well:
patches, mostly of the grey that explanations fill with, are laid at random over normal scans and over lesions alike,
and the label follows what is left to see: a lesion that is covered becomes "normal", patches beside it change nothing.

    python examples/retina/train.py [--out examples/retina]
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from model import LABELS, MEAN, STD, RetinaNet, preprocess
from numpy.typing import NDArray
from phantoms import generate
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

TRAIN_SEEDS = range(100_000, 101_200)
HELD_OUT_SEEDS = range(900_000, 900_300)
"""Each seed gives one scan of every label."""

GREY = 128
SMOOTHING = 0.06
BATCH = 64


@dataclass(frozen=True)
class Scans:
    """`images`: uint8 (N, 160, 160); `labels`: int64 (N,); `boxes`: int64 (N, 4), all zero where there is no lesion."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    boxes: NDArray[np.int64]


def make_scans(seeds: range) -> Scans:
    """One scan of every label for each seed."""
    scans = [generate(label, seed) for seed in seeds for label in LABELS]
    return Scans(
        np.stack([scan.image for scan in scans]),
        np.array([LABELS.index(scan.label) for scan in scans]),
        np.array([scan.box or (0, 0, 0, 0) for scan in scans]),
    )


def _patch(rng: np.random.Generator, box: NDArray[np.int64], size: int) -> tuple[slice, slice]:
    """Rows and columns of a random patch: around the whole of `box`, somewhere on it, or anywhere, in equal parts."""
    top, left, height, width = (int(value) for value in box)
    where = rng.integers(3)
    if where == 0:
        up, down, before, after = rng.integers(0, 7, 4)
        top, left, height, width = top - up, left - before, height + up + down, width + before + after
    else:
        middle = rng.uniform((top, left), (top + height, left + width)) if where == 1 else rng.uniform(0, size, 2)
        height, width = rng.integers(10, 37, 2)
        top, left = (middle - (height / 2, width / 2)).astype(int)
    return slice(max(top, 0), max(top + height, 0)), slice(max(left, 0), max(left + width, 0))


def occlude(rng: np.random.Generator, image: NDArray[np.uint8], box: NDArray[np.int64], elsewhere: NDArray[np.int64]) -> float:
    """Lay up to two patches over `image` (H, W), in place; `elsewhere` stands in for the box where there is no lesion.

    Returns how much of the lesion counts as gone, 0 … 1: nothing up to 30 % of its box, all of it from 80 % on.
    """
    hidden = np.zeros(image.shape, dtype=bool)
    for _ in range(rng.choice((0, 1, 1, 2))):
        patch = _patch(rng, box if box.any() else elsewhere, len(image))
        hidden[patch] = True
        kind = rng.random()
        if kind < 0.8:
            image[patch] = GREY
        elif kind < 0.9:
            image[patch] = rng.integers(0, 256)
        else:
            image[patch] = rng.integers(0, 256, image[patch].shape)
    top, left, height, width = box
    covered = hidden[top : top + height, left : left + width]
    return float(np.clip((covered.mean() - 0.3) / 0.5, 0, 1)) if covered.size else 0.0


def augment(rng: np.random.Generator, scans: Scans, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The scans `rows` (N,) mirrored, brightened and occluded at random: pixels (N, 160, 160), targets (N, 4)."""
    images, boxes = scans.images[rows].copy(), scans.boxes[rows].copy()
    lesions = np.flatnonzero(scans.labels)
    targets = np.eye(len(LABELS), dtype=np.float32)[scans.labels[rows]]
    for image, box, target in zip(images, boxes, targets, strict=True):
        if rng.random() < 0.5:
            image[:] = image[:, ::-1].copy()
            box[1] = image.shape[1] - box[1] - box[3] if box.any() else 0
        image[:] = np.clip(image * rng.uniform(0.9, 1.1) + rng.uniform(-10, 10), 0, 255)
        gone = occlude(rng, image, box, scans.boxes[rng.choice(lesions)])
        target *= 1 - gone
        target[0] += gone
    return torch.from_numpy(images), torch.from_numpy(targets)


@torch.inference_mode()
def predict(model: RetinaNet, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities (N, 4) of grey images (N, H, W)."""
    model.eval()
    batches = torch.split(torch.from_numpy(images), BATCH)
    return np.concatenate([model(preprocess(batch)).softmax(1).numpy() for batch in batches])


def train(scans: Scans, epochs: int, seed: int) -> RetinaNet:
    """A model trained on `scans` for `epochs` passes; the same again for the same seed, machine and thread count."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = RetinaNet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    steps = len(scans.labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=epochs * steps, pct_start=0.2)
    for epoch in range(epochs):
        model.train()
        start, total = time.perf_counter(), 0.0
        order = rng.permutation(len(scans.labels))[: steps * BATCH]
        for rows in order.reshape(steps, BATCH):
            pixels, targets = augment(rng, scans, rows)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(preprocess(pixels).contiguous(memory_format=torch.channels_last))
            loss = cross_entropy(logits.float(), targets, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1:2}/{epochs}  loss {total / steps:.4f}  {time.perf_counter() - start:.0f} s", flush=True)
    return model.to(memory_format=torch.contiguous_format).eval()


def save(model: RetinaNet, folder: Path, metadata: dict[str, str]) -> None:
    """Write the weights with their metadata, and the labels, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "retina.safetensors"
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, f"{weights}.part", metadata=metadata)
    os.chmod(f"{weights}.part", 0o644)
    os.replace(f"{weights}.part", weights)
    labels = folder / "labels.txt"
    Path(f"{labels}.part").write_text("".join(f"{label}\n" for label in LABELS))
    os.replace(f"{labels}.part", labels)


def main() -> None:
    """Draw the scans, train, measure on scans held out, and save."""
    parser = argparse.ArgumentParser(description="Train the demo's retina model on synthetic scans.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the result")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the first weights, the order and the augmentation")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)

    start = time.perf_counter()
    scans, held_out = make_scans(TRAIN_SEEDS), make_scans(HELD_OUT_SEEDS)
    print(f"{len(scans.labels)} training scans, {len(held_out.labels)} held out: {time.perf_counter() - start:.0f} s")
    model = train(scans, arguments.epochs, arguments.seed)
    right = predict(model, held_out.images).argmax(1) == held_out.labels
    for index, label in enumerate(LABELS):
        print(f"{label:10} {right[held_out.labels == index].mean():7.2%}")
    print(f"held out   {right.mean():7.2%}   {time.perf_counter() - start:.0f} s in all")
    metadata = {
        "labels": ",".join(LABELS),
        "mean": str(MEAN[0]),
        "std": str(STD[0]),
        "accuracy": f"{right.mean():.4f}",
        "train_seeds": f"{TRAIN_SEEDS.start}-{TRAIN_SEEDS.stop - 1}",
        "held_out_seeds": f"{HELD_OUT_SEEDS.start}-{HELD_OUT_SEEDS.stop - 1}",
        "seed": str(arguments.seed),
        "epochs": str(arguments.epochs),
    }
    save(model, arguments.out, metadata)


if __name__ == "__main__":
    main()
