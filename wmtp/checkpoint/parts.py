"""Which part of the training state a rank saves: of a sharded tensor its shard, of what all have rank 0's.

Together the ranks save every element once. A sharded tensor is a ``DTensor``, as FSDP2 makes them; any other
is the same on all ranks, but for what is extra: random numbers, say, are each rank's own.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import Tensor, nn

from uploader.errors import WmtpError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs

Groups = dict[str, dict[str, Tensor]]
"""Tensors by name: ``model`` (what is trained), ``frozen`` (the rest of the model), ``optim``, ``extra``."""

Offsets = Mapping[str, tuple[int, ...]]
"""By a tensor's name, where it begins in the tensor that it is a part of."""

NOWHERE: Offsets = MappingProxyType({})


def own_name(name: str, rank: int) -> str:
    """How a rank's own tensor is named among those of all."""
    return f"{name}@{rank}" if rank else name


def is_sharded(tensor: Tensor) -> "TypeIs[DTensor]":
    """Whether it is a ``DTensor``; where none can be, its module need not be imported."""
    return hasattr(tensor, "placements")


class Parts:
    """Cuts a rank's own tensors out of all.

    Attributes:
        offsets: of the shards cut last.
    """

    def __init__(self, model: nn.Module, rank: int) -> None:
        from torch.distributed.fsdp import FSDPModule

        self._model, self._rank, self._kind = model, rank, FSDPModule
        self._known: dict[str, tuple[Tensor, tuple[int, ...] | None]] = {}
        self.offsets: dict[str, tuple[int, ...]] = {}

    def reshard(self) -> None:
        """A forward pass without a backward leaves whole parameters in place of the shards."""
        for module in self._model.modules():
            if isinstance(module, self._kind):
                module.reshard()

    def own(self, groups: Groups) -> Groups:
        """What this rank saves, as plain tensors that share the memory of those given.

        Raises:
            WmtpError: a tensor is sharded in a way that no file can tell.
        """
        mine: Groups = {kind: {} for kind in groups}
        self.offsets = {}
        for kind, tensors in groups.items():
            for name, one in tensors.items():
                if is_sharded(one):
                    self._add_shard(mine[kind], name, one)
                elif kind == "extra" or self._rank == 0:
                    mine[kind][own_name(name, self._rank)] = one
        return mine

    def _add_shard(self, mine: dict[str, Tensor], name: str, tensor: "DTensor") -> None:
        known, begins = self._known.get(name, (None, None))
        if known is not tensor:
            begins = _begins(name, tensor)
            self._known[name] = tensor, begins
        if begins is not None:
            mine[name] = tensor._local_tensor  # to_local() may be a new object each time
            self.offsets[name] = begins


def _begins(name: str, tensor: "DTensor") -> tuple[int, ...] | None:
    """Where this rank's shard of a tensor begins; None where there is none, or another rank saves it."""
    coordinate = tensor.device_mesh.get_coordinate()
    chunks = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]
    if coordinate is None or len(chunks) > 1 or any(one.is_partial() for one in tensor.placements):
        hint = "shard along dimensions of the tensor, one block a rank, as fully_shard does"
        problem = f"placed as {tensor.placements} it can't be saved"
        raise WmtpError(problem, doing="saving", subject=f"tensor {name!r}", hint=hint)
    copies = [at for at, one in zip(coordinate, tensor.placements, strict=True) if one.is_replicate()]
    if any(copies) or not chunks or 0 in chunks[0].sizes:
        return None
    return tuple(chunks[0].offsets)
