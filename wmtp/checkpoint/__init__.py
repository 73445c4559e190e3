"""From the training state in memory to a committed ``step_N/`` on local disk, and back.

Read: checkpointer, saver, collect, snapshot, copying, shards, writer, disk; then session, resume, load.
"""
