"""A loop of its own under torchrun: trains a small model, sharded, with the public ``Checkpointer``.

``python several_ranks.py DIRECTORY RESUME STEPS OUT [EVENT…]``: goes on from RESUME (``none`` for a start
from scratch), trains to STEPS, saves each second step, and writes to OUT/rankN.json what it saw.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from uploader import checksum
from wmtp.checkpoint.checkpointer import Checkpointer, Options
from wmtp.checkpoint.disk import Disk
from wmtp.checkpoint.uploader_process import Uploading

SAMPLES = 12


class Net(nn.Module):
    """Uneven shapes, a 0-dim parameter, a buffer, dropout, and a frozen matrix."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)
        self.frozen = nn.Linear(3, 2, bias=False).requires_grad_(False)
        self.few = nn.Parameter(torch.ones(1))  # fewer rows than ranks
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.dropout = nn.Dropout(0.0)

    def forward(self, data: Tensor) -> Tensor:
        if self.training:
            self.count += 1
        out: Tensor = self.frozen(self.second(self.dropout(torch.tanh(self.first(data))))) * self.few
        return out


class Average:
    """Averaged weights: sharded tensors outside of the model."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {name: one.detach().clone() for name, one in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for name, one in model.named_parameters():
            self.weights[name].lerp_(one.detach(), 0.25)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, one in self.weights.items():
            one.copy_(state["weights"][name])


class Own:
    """A tensor that is each rank's own."""

    def __init__(self, rank: int) -> None:
        self.number = torch.tensor([float(rank)])

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"].clone()


class FullDisk(Disk):
    """Fails for one rank's files of one step."""

    def __init__(self, step: int) -> None:
        super().__init__(rank_timeout_s=2.0)
        self._step = step

    def perform(self, operation: Any) -> Any:
        from uploader.errors import DiskError
        from wmtp.checkpoint.disk import Write

        if isinstance(operation, Write) and f"step_{self._step}." in str(operation.path):
            self._step = -1
            raise DiskError("No space left on device", doing="writing", subject=str(operation.path))
        return super().perform(operation)


def whole(value: Any) -> str:
    """The checksum of a tensor's bytes, of all ranks together."""
    tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return checksum.of_bytes(
        memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(SAMPLES, 5, generator=generator), torch.randn(SAMPLES, 2, generator=generator)


def main(directory: Path, resume: str, steps: int, out: Path, events: list[str]) -> None:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        dist.init_process_group("gloo")
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    model = Net()
    if several and "plain" not in events:
        fully_shard(model.first)
        fully_shard(model)
    torch.manual_seed(100 + rank)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.05)
    average, own = Average(model), Own(rank)
    disk = None
    for event in events:
        kind, _, detail = event.partition("=")
        if kind == "full" and detail.split("@")[1] == str(rank):
            disk = FullDisk(int(detail.split("@")[0]))
        if kind == "full" and disk is None:
            disk = Disk(rank_timeout_s=2.0)
    options = Options(uploading=Uploading.NONE, disk=disk)
    seen: dict[str, Any] = {"losses": []}
    with Checkpointer(
        directory,
        model=model,
        optimizer=optimizer,
        extra={"average": average, "own": own},
        every=2,
        options=options,
    ) as checkpointer:
        began = checkpointer.restore(None if resume == "none" else resume)
        seen["began"], seen["own"], seen["random"] = began, own.number.item(), torch.rand(()).item()
        seen["loaded"] = {name: whole(one) for name, one in model.state_dict().items()}
        seen["averages"] = {name: whole(one) for name, one in average.weights.items()}
        start, end = SAMPLES * rank // world_size, SAMPLES * (rank + 1) // world_size
        if "plain" in events:  # every rank computes all, and so has the same weights
            start, end = 0, SAMPLES
        for step in range(began, steps):
            data, wanted = batch(step)
            loss = (model(data[start:end]) - wanted[start:end]).square().mean()
            loss.backward()
            checkpointer.fence()
            optimizer.step()
            optimizer.zero_grad()
            average.update(model)
            total = loss.detach().clone()
            if several:
                dist.all_reduce(total)
            seen["losses"].append(total.item() / world_size)
            if "eval" in events:
                with torch.no_grad():
                    model(data[start:end])  # leaves whole parameters in place
            checkpointer.save(step + 1, force=step + 1 == steps)
            checkpointer.wait()
        checkpointer.save(steps, force=True)  # once more, if that failed
        checkpointer.wait()
        seen["state"] = {name: whole(one) for name, one in model.state_dict().items()}
        seen["moments"] = [
            whole(value) for state in optimizer.state.values() for _, value in sorted(state.items())
        ]
        seen["errors"] = [str(one.error) if one.error else "" for one in checkpointer.saved]
    (out / f"rank{rank}.json").write_text(json.dumps(seen))
    if several:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
