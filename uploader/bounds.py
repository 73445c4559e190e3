"""How large the numbers in our files may be: what is larger has no name in ``layout``, or is none of ours.

They are checked as a file is decoded, so nobody counts up to one, or takes memory for it, before that.
"""

from typing import Annotated

from pydantic import Field

MAX_NODES = 10_000
"""``node-NNNN.json`` has four digits."""
MAX_RANKS = 100_000
"""``model-rankRRRRR-…`` has five."""

Count = Annotated[int, Field(ge=0, lt=2**53)]
"""A size or a step: exact in every JSON reader."""
MAX_GENERATIONS = 10**9
"""``step_N/gG/`` has nine digits for it."""
Generation = Annotated[int, Field(ge=0, lt=MAX_GENERATIONS)]
Node = Annotated[int, Field(ge=0, lt=MAX_NODES)]
Nodes = Annotated[int, Field(ge=1, le=MAX_NODES)]
Rank = Annotated[int, Field(ge=0, lt=MAX_RANKS)]
Ranks = Annotated[list[Rank], Field(max_length=MAX_RANKS)]
WorldSize = Annotated[int, Field(ge=1, le=MAX_RANKS)]
