"""Pure functions from logits and labels to cross entropies, weights and a loss."""
