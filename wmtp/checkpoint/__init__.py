"""From the training state in memory to a committed ``step_N/`` on local disk, and back.

Read: state, shards, snapshot, writer, checkpointer; then start, load.
"""
