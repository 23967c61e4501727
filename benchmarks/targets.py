"""What the issues want `benchmarks.exact` to show, as data: speed-ups by case.

`channels_last`: exact against eager channels_last. `fastest`: exact against the fastest stock float32 inference, eager or
compiled. `tolerance`: a query WITH (tolerance => 0.05) against the same. `captum`: exact against Captum, both under the default
allocator, as Captum's users run it.
"""

from __future__ import annotations

EARLIER: dict[tuple[str, int], float] = {
    ("vgg16", 224): 6.5,
    ("resnet18", 224): 2.6,
    ("resnet50", 224): 2.1,
    ("inception_v3", 299): 1.6,
    ("densenet121", 224): 2.4,
    ("mobilenet_v2", 224): 3.0,
    ("resnet18", 1024): 20.0,
}
"""Exact against eager channels_last, as the issue on exact queries wants it."""

WANTED: dict[tuple[str, int], dict[str, float]] = {
    ("vgg16", 224): {"fastest": 13, "tolerance": 15, "captum": 18},
    ("resnet18", 224): {"fastest": 3.6, "tolerance": 4.5, "captum": 6},
    ("resnet50", 224): {"fastest": 2.8, "tolerance": 3.3, "captum": 5},
    ("inception_v3", 299): {"fastest": 2.1, "tolerance": 2.6, "captum": 3.5},
    ("densenet121", 224): {"fastest": 2.4, "tolerance": 3.1, "captum": 4.5},
    ("mobilenet_v2", 224): {"fastest": 2.7, "tolerance": 3.1, "captum": 8},
    ("resnet18", 512): {"channels_last": 9},
    ("resnet18", 1024): {"channels_last": 35},
    ("vgg16", 448): {"channels_last": 35},
}
"""What the issue on speed wants; its cases are what the benchmark runs when told nothing else."""


def wanted(model: str, size: int) -> dict[str, float]:
    """All aims of one case; `earlier` is the earlier issue's against channels_last."""
    aims = dict(WANTED.get((model, size), {}))
    if (model, size) in EARLIER:
        aims["earlier"] = EARLIER[model, size]
    return aims
