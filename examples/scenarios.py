"""The papers' four demonstrations on one picture: a naive map, the exact one, an approximate one, and a region in detail.

    python -m examples.scenarios                          the shipped demo model and scan
    python -m examples.scenarios resnet18/xray            one of the nine settings of benchmarks/settings.py, made if need be

Each scenario is one statement of a session; what it costs and how the maps compare is printed, and drawn into one picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import krypton
from benchmarks.settings import NINE, SETS, Setting, ready
from krypton.cli.demo import connect_with_model, find_files
from krypton.results import Heatmap, compare

DEMO = "demo"
ALONG = 8  # positions along each side of the region


@dataclass(frozen=True)
class Scene:
    """A session that knows the model as `subject`, a picture (H, W, 3), and the papers' drill-down for such pictures."""

    con: krypton.Connection
    picture: np.ndarray[Any, Any]
    drilldown: tuple[float, float]


def scene(setting: str, number: int) -> Scene:
    """The scene of a setting, with the picture of that number; the demo has one picture."""
    if setting == DEMO:
        files = find_files()
        with connect_with_model(files) as con:
            model = con.library.named("retina")
        about = model.preprocessing
        found = krypton.connect()
        found.register_model(
            "subject", model.module, input_shape=about.shape, mean=about.mean, std=about.std, labels=model.labels
        )
        return Scene(found, np.asarray(Image.open(files / "scan.png").convert("RGB")), SETS["retina"].drilldown)
    chosen = Setting.parse(setting)
    made = ready(chosen)
    labels = made.path.with_suffix(".txt")
    labels.write_text("".join(f"{name}\n" for name in made.names))
    con = krypton.connect()
    con.sql(f"CREATE MODEL subject FROM '{made.path}' LABELS '{labels}'")
    *_, picture = chosen.test_images(number + 1)
    return Scene(con, picture, SETS[chosen.set].drilldown)


def play(scene: Scene, patch: int, stride: int) -> dict[str, Heatmap]:
    """The maps of the four scenarios, by their names."""
    query = f"EXPLAIN OCCLUSION OF $image USING MODEL subject PATCH {patch}"
    scene.con.sql("SET krypton.reuse_results = false")  # times are to be compared

    def run(clauses: str) -> Heatmap:
        answer = scene.con.sql(f"{query} {clauses}", params={"image": scene.picture}).run()
        assert isinstance(answer, Heatmap)
        return answer

    naive = run(f"STRIDE {stride} MODE NAIVE")
    exact = run(f"STRIDE {stride}")
    share, speedup = scene.drilldown
    approximate = run(f"STRIDE {stride} MODE APPROXIMATE WITH (drilldown => {share:g}, speedup => {speedup:g})")
    fine = max(1, stride // 2)
    region = run(f"STRIDE {fine} IN REGION ({', '.join(map(str, around(exact, patch, stride)))})")
    return {"naive": naive, "exact": exact, "approximate": approximate, "region": region}


def around(heatmap: Heatmap, patch: int, stride: int) -> tuple[int, int, int, int]:
    """A region (top, left, height, width) in pixels around the most sensitive position, within the image."""
    extents = [min(patch + ALONG * stride, length) for length in heatmap.image_size]
    row, column = np.unravel_index(heatmap.drop().argmax(), heatmap.known.shape)
    top, left = heatmap.positions[row, column, :2].tolist()
    places = [
        min(max(start + (patch - extent) // 2, 0), length - extent)
        for start, extent, length in zip((top, left), extents, heatmap.image_size, strict=True)
    ]
    return places[0], places[1], extents[0], extents[1]


def captions(maps: Mapping[str, Heatmap]) -> dict[str, str]:
    """What each map cost, and how it compares."""
    naive, exact, approximate, region = maps.values()
    seconds = {name: float(found.info["seconds"]) for name, found in maps.items()}
    difference = float(np.abs(naive.heatmap - exact.heatmap).max())
    quality = compare(approximate, exact)
    similar = "flat map" if quality.ssim is None else f"SSIM {quality.ssim:.3f}"
    return {
        "naive": f"naive: {seconds['naive']:.1f} s, {naive.known.numel():,} positions",
        "exact": f"exact: {seconds['naive'] / seconds['exact']:.1f}× faster, differs by {difference:.0e}",
        "approximate": f"approximate: {seconds['naive'] / seconds['approximate']:.1f}× faster, {similar}",
        "region": f"region: {seconds['region']:.1f} s, {region.known.numel():,} positions",
    }


def draw(scene: Scene, maps: Mapping[str, Heatmap], path: Path) -> None:
    """The picture and the four maps over it, in one row."""
    figure = Figure(figsize=(18, 4), layout="constrained")
    first, *others = figure.subplots(1, 5)
    first.imshow(scene.picture)
    exact = maps["exact"]
    first.set_title(f"{exact.label}: {exact.base_score:.2f}", fontsize=10)
    first.set_axis_off()
    for ax, (name, caption) in zip(others, captions(maps).items(), strict=True):
        maps[name].plot(ax=ax)
        ax.set_title(caption, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description="Naive, exact, approximate, region: the papers' demonstrations.")
    names = [DEMO, *map(str, NINE)]
    parser.add_argument("setting", nargs="?", default=DEMO, choices=names, metavar="MODEL/SET", help=", ".join(names))
    parser.add_argument("--picture", type=int, default=0, help="number of the test picture")
    parser.add_argument("--patch", type=int, default=16, help="pixels")
    parser.add_argument("--stride", type=int, default=4, help="pixels; half of it in the region")
    parser.add_argument("--out", type=Path, default=Path("out/scenarios.png"))
    arguments = parser.parse_args()
    found = scene(arguments.setting, arguments.picture)
    with found.con:
        maps = play(found, arguments.patch, arguments.stride)
    print("\n".join(captions(maps).values()))
    draw(found, maps, arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
