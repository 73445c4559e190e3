"""``python -m tests.simulation``: play one seed, or many."""

from uploader import checksum

checksum.BLOCK_SIZE_BYTES = 64  # before any room takes it over

from .run import main  # noqa: E402

main()
