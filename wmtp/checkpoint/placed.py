"""The tensors of a checkpoint as this rank holds them: of what is sharded here, its own part."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from wmtp.checkpoint.parts import is_sharded, own_name
from wmtp.checkpoint.state import Stateful, flatten
from wmtp.checkpoint.stored import StoredTensors

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from wmtp.checkpoint.load import Loaded


class Placed(Mapping[str, Tensor]):
    """A tensor is sharded as its live counterpart is; what an optimizer keeps of a parameter, as that is."""

    def __init__(self, loaded: "Loaded", model: nn.Module, extra: Mapping[str, Stateful]) -> None:
        assert isinstance(loaded.tensors, StoredTensors)  # noqa: S101
        self._stored, self._rank = loaded.tensors, loaded.rank
        self._live: dict[str, Tensor] = {}
        state = model.state_dict()
        for name, ref in loaded.tree["model"].items():
            self._note(ref, state.get(name))
        for saved in loaded.tree["optim"].values():
            for name, kept in saved["state"].items():
                for ref in kept.values():
                    self._note(ref, state.get(name))
        for name, stateful in extra.items():
            flatten(stateful.state_dict(), f"extra.{name}", self._live)

    def _note(self, ref: object, live: object) -> None:
        if isinstance(ref, dict) and "$tensor" in ref and isinstance(live, Tensor):
            self._live[ref["$tensor"]] = live

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._stored or own_name(name, self._rank) in self._stored)

    def __getitem__(self, name: str) -> Tensor:
        own, live = own_name(name, self._rank), self._live.get(name)
        if own != name and own in self._stored:
            return self._stored[own]
        if live is not None and is_sharded(live) and tuple(live.shape) == self._stored.shape(name):
            return self._part(name, live)
        return self._stored[name]

    def _part(self, name: str, live: "DTensor") -> Tensor:
        """This rank's shard, read from wherever it lies, as a part of what is sharded as ``live`` is."""
        from torch.distributed.tensor import DTensor

        sizes = live.to_local().shape
        chunks = live.__create_chunk_list__()  # type: ignore[no-untyped-call]
        offsets = chunks[0].offsets if chunks else [0] * len(sizes)
        box = tuple((at, at + size) for at, size in zip(offsets, sizes, strict=True))
        local = self._stored.region(name, box).to(live.device)
        placed: Tensor = DTensor.from_local(
            local, live.device_mesh, live.placements, shape=live.shape, stride=live.stride()
        )
        return placed
