"""What a checkpoint is worth: losses on held-out text, and decoding with all its heads."""
