"""Train weighted multi-token-prediction language models; their checkpoints never stop the step."""

from uploader import __version__

__all__ = ["__version__"]
