"""What a query answers: the heat map, its scores, pictures, files and quality.

Nothing here imports Matplotlib before it draws.
"""

from krypton.results.heatmap import Heatmap, HeldOut
from krypton.results.quality import MeasuredQuality, Quality, compare
from krypton.results.scores import ACTIVATIONS, SCORE_KINDS, Activation, ScoreKind, default_activation, score

__all__ = [
    "ACTIVATIONS",
    "SCORE_KINDS",
    "Activation",
    "Heatmap",
    "HeldOut",
    "MeasuredQuality",
    "Quality",
    "ScoreKind",
    "compare",
    "default_activation",
    "score",
]
