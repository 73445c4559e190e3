"""Text to packed tokens to batches whose position in the data is one integer."""
