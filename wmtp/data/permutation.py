"""The order of an epoch, computed for any sample without computing it for the others.

A balanced Feistel network permutes the smallest power of four that is not below ``size``; numbers that land
outside are sent through again until they are inside (cycle walking), which leaves a permutation of
0..size-1. Nothing is stored and no library's random stream is relied on: only 64-bit integer arithmetic, so
the order is the same for ever and on every machine.

Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002); the mixing function is splitmix64.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint64]

ROUNDS = 6


def shuffled(indices: npt.NDArray[np.int64], *, size: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Where the permutation (seed, epoch) of 0..size-1 sends each of ``indices``."""
    half_bits = max(1, (size - 1).bit_length() + 1 >> 1)
    keys = _round_keys(seed, epoch)
    words = _feistel(indices.astype(np.uint64), half_bits, keys)
    while (outside := words >= size).any():
        words[outside] = _feistel(words[outside], half_bits, keys)
    return words.astype(np.int64)


def _feistel(words: Words, half_bits: int, keys: Words) -> Words:
    """A permutation of 0..4**half_bits-1: each round is undone by the same round, so no two words meet."""
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = words >> shift, words & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return left << shift | right


def _round_keys(seed: int, epoch: int) -> Words:
    """One key a round; the seed is mixed before the epoch comes in, so (1, 2) is nothing like (2, 1)."""
    start = _mix(np.array([seed & 0xFFFF_FFFF_FFFF_FFFF], dtype=np.uint64))
    start = _mix(start ^ np.array([epoch], dtype=np.uint64))
    return _mix(np.arange(ROUNDS, dtype=np.uint64) + start[0])


def _mix(words: Words) -> Words:
    """splitmix64: every bit of the result depends on every bit of the word; wraps at 64 bits."""
    words = words + np.uint64(0x9E37_79B9_7F4A_7C15)
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58_476D_1CE4_E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D0_49BB_1331_11EB)
    return words ^ words >> np.uint64(31)
