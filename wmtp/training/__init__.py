"""What one training step is made of, and the loop that repeats it."""
