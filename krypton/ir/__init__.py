"""The data that planner and executor exchange: geometry, graphs, weights, plans. Frozen, printable, serialisable."""
