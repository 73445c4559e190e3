"""In which order contenders take their turns."""

import random
from collections.abc import Sequence


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order of round ``number``: another each time, and the same in every run.

    Drawn, not rotated: in a rotation everyone follows the same neighbour, and inherits what that left behind,
    like a page cache full of dirty pages.
    """
    return random.Random(number).sample(names, len(names))
