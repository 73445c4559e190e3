"""``python -m wmtp``: how the trainer starts its uploader, whatever the console script is called."""

from wmtp.cli import main

main()
