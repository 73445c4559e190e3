"""A step of a run as a model: below which prefix of the run's store its files lie.

Each generation of a run writes a step below a prefix of its own, and the manifest says which of them is live.
A Hugging Face directory has no manifest and stays where it is; so does what lies on this machine.
"""

from functools import partial

import anyio

from uploader import layout
from uploader.errors import SettingsError
from uploader.layout import RunKeys
from uploader.location import Location
from uploader.manifest import Manifest
from uploader.manifest_file import ManifestFile
from uploader.retry import RetryPolicy
from uploader.settings import StorageSettings
from uploader.store import open_store
from uploader.store.retrying import RetryingStore
from wmtp.model.fetch import STORE_TIMEOUT_S


def locate_step(location: Location, storage: StorageSettings, *, field: str) -> Location:
    """Where the files of a model in a store lie: of ``…/step_N`` the prefix of the live generation.

    Args:
        field: the setting that named the location, for messages.

    Raises:
        SettingsError: the run has no such step, or the location is that of the run itself.
        CorruptError: the run's manifest can't be read.
        StoreError: the store can't be reached, or refuses.
    """
    step = layout.parse_step(location.name)
    root = location if step is None else location.parent
    manifest = anyio.run(partial(_manifest, root, storage)) if location.is_s3 else None
    if manifest is None:
        return location
    live = {entry.step: entry for entry in manifest.live.values()}
    if step not in live:
        problem = "that is a run, not one of its steps" if step is None else "the run has no such step"
        hint = f"name {root.join('step_N')}; there are: {layout.suggest_steps(live)}"
        raise SettingsError(problem, subject=f"{field} {location}", hint=hint)
    return root.join(live[step].record.removesuffix(f"/{layout.COMMIT_RECORD_NAME}"))


async def _manifest(root: Location, storage: StorageSettings) -> Manifest | None:
    """The manifest of a run; None where no run is."""
    async with open_store(root, storage) as opened:
        store = RetryingStore(opened, RetryPolicy(deadline_s=STORE_TIMEOUT_S))
        return await ManifestFile(store, root.name, RunKeys()).read()
