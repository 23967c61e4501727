"""What a query answers: the heat map, its scores, pictures, files and quality.

Nothing here imports Matplotlib before it draws.
"""

from krypton.results.heatmap import Heatmap
from krypton.results.quality import Quality, compare
from krypton.results.scores import ACTIVATIONS, SCORE_KINDS, Activation, ScoreKind, default_activation, score

__all__ = [
    "ACTIVATIONS",
    "SCORE_KINDS",
    "Activation",
    "Heatmap",
    "Quality",
    "ScoreKind",
    "compare",
    "default_activation",
    "score",
]
