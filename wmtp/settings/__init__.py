"""Settings: two YAML files, flags and the environment become one ``Resolved``; imports no torch."""

from wmtp.settings.config import Config
from wmtp.settings.describe import describe
from wmtp.settings.load import load_config, load_settings
from wmtp.settings.recipe import Recipe
from wmtp.settings.resolve import directory_of, resolve, storage_of
from wmtp.settings.resolved import Flags, Resolved
from wmtp.settings.resume import Resume

__all__ = [
    "Config",
    "Flags",
    "Recipe",
    "Resolved",
    "Resume",
    "describe",
    "directory_of",
    "load_config",
    "load_settings",
    "resolve",
    "storage_of",
]
