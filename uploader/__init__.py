"""Push checkpoints to an object store, from any trainer, without torch.

Read the rooms in the order the data flows: layout, events, queue, record, watch, service, backlog, early,
commit, multipart, parts, generation, manifest, manifest_file, upkeep, retention, prune, restore.
"""

__version__ = "0.1.0"
