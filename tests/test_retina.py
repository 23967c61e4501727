"""The shipped model is good, and what Krypton says about it points at the lesions."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

import krypton
from benchmarks.examples import EXAMPLES, example

FOLDER = EXAMPLES / "retina"
FIRST_SEED = 970_000  # neither trained on nor looked at when the model was made
SCANS_PER_LESION = 10


@pytest.fixture(scope="module")
def model() -> ModuleType:
    return example("retina/model")


@pytest.fixture(scope="module")
def phantoms() -> ModuleType:
    return example("retina/phantoms")


def test_the_model_is_right_on_at_least_95_percent_of_unseen_scans(model: ModuleType, phantoms: ModuleType) -> None:
    scans = [phantoms.generate(kind, FIRST_SEED + i) for i in range(50) for kind in model.LABELS]
    pixels = torch.stack([torch.from_numpy(scan.image) for scan in scans])
    with torch.no_grad():
        predicted = model.load(FOLDER / "retina.safetensors")(model.preprocess(pixels)).argmax(1)
    right = sum(model.LABELS[int(index)] == scan.label for index, scan in zip(predicted, scans, strict=True))
    assert right / len(scans) >= 0.95


def test_the_most_sensitive_position_covers_the_lesion(model: ModuleType, phantoms: ModuleType) -> None:
    con = krypton.connect()
    con.register_model(
        "retina",
        model.load(FOLDER / "retina.safetensors"),
        input_shape=(1, 160, 160),
        mean=model.MEAN,
        std=model.STD,
        labels=model.LABELS,
    )
    query = "EXPLAIN OCCLUSION OF $scan USING MODEL retina PATCH 16 STRIDE 8"
    hits = correct = 0
    for kind in [label for label in model.LABELS if label != "normal"]:
        for i in range(SCANS_PER_LESION):
            scan = phantoms.generate(kind, FIRST_SEED + i)
            heatmap = con.sql(query, params={"scan": scan.image}).run()
            if heatmap.label == kind:
                correct += 1
                hits += overlap(heatmap.most_sensitive, scan.box)
    assert correct >= 0.9 * 3 * SCANS_PER_LESION
    assert hits / correct >= 0.8


def overlap(patch: tuple[int, int, int, int], box: tuple[int, int, int, int]) -> bool:
    """Do two rectangles (top, left, height, width) share a pixel?"""
    return all(patch[a] < box[a] + box[2 + a] and box[a] < patch[a] + patch[2 + a] for a in (0, 1))
