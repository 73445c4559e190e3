"""A Llama-style decoder with a shared trunk and several multi-token-prediction heads."""
