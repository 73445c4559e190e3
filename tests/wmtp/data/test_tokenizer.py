"""The byte tokenizer: every byte string comes back."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wmtp.data.tokenizer import ByteTokenizer, token_dtype


@given(st.binary(max_size=300))
def test_bytes_come_back(text: bytes) -> None:
    tokens = ByteTokenizer().encode(text)
    assert tokens.dtype == np.uint16
    assert len(tokens) == len(text)
    assert ByteTokenizer().decode(tokens) == text


def test_special_tokens_are_distinct_below_the_vocabulary_and_stand_for_no_bytes() -> None:
    tokenizer = ByteTokenizer()
    special = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert len(set(special)) == 3
    assert min(special) > 255 and max(special) < tokenizer.vocab_size
    assert (
        tokenizer.decode(np.array([tokenizer.bos_id, 104, 105, tokenizer.eos_id], dtype=np.uint16)) == b"hi"
    )


def test_a_token_takes_four_bytes_only_where_two_are_too_few() -> None:
    assert token_dtype(65_536).itemsize == 2
    assert token_dtype(65_537).itemsize == 4
