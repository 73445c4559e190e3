"""Push checkpoints to an object store, from any trainer, without torch.

Read the rooms in the order the data flows: layout, events, queue, record, manifest, watch, service,
parts, multipart, generation, commit, retention, prune, restore.
"""

__version__ = "0.1.0"
