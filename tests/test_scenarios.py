"""The papers' four demonstrations, on the shipped model with few positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from examples import scenarios


def test_four_scenarios_of_the_demo_agree_and_are_drawn(tmp_path: Path) -> None:
    scene = scenarios.scene(scenarios.DEMO, 0)
    with scene.con:
        maps = scenarios.play(scene, 32, 16)
    assert list(maps) == ["naive", "exact", "approximate", "region"]
    np.testing.assert_allclose(maps["exact"].heatmap, maps["naive"].heatmap, atol=1e-4)
    assert not maps["approximate"].exact.all()
    top, left, height, width = scenarios.around(maps["exact"], 32, 16)
    boxes = maps["region"].positions.view(-1, 4)
    assert boxes[:, :2].min(0).values.tolist() == [top, left]
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor([top + height, left + width])).all()
    path = tmp_path / "new" / "scenarios.png"
    scenarios.draw(scene, maps, path)
    with Image.open(path) as picture:
        assert picture.width > 4 * picture.height
    assert "faster" in scenarios.captions(maps)["exact"]
