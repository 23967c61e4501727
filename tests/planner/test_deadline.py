"""What a deadline makes a query leave out besides positions: little that saves much, where there is time to measure it."""

from __future__ import annotations

import pytest

from krypton.planner.deadline import KEEP, TOLERANCE, Cheaper, cheaper


@pytest.mark.parametrize(
    ("deadline", "seconds", "chosen"),
    [
        (30, 20, None),  # time for all positions
        (19, 20, None),  # perhaps
        (10, 20, Cheaper(TOLERANCE, KEEP)),
        (8, 20, Cheaper(TOLERANCE, KEEP)),
        (5, 20, Cheaper(TOLERANCE)),
        (2, 20, None),  # too little to measure anything
        (2, 4, None),  # a small query
        (1, 0, None),  # all is known
    ],
)
def test_positions_become_cheaper_where_many_but_not_all_can_be_computed(
    deadline: float, seconds: float, chosen: Cheaper | None
) -> None:
    assert cheaper(deadline, seconds) == chosen
