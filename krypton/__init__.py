"""Krypton: a query engine for occlusion explanations of CNNs."""
