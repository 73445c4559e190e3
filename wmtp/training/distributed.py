"""Several ranks that train one model: how they join, how the model is sharded, and who goes first.

``torchrun --standalone --nproc-per-node N -m wmtp train …`` starts them, all on one machine. Each holds its
part of every weight (FSDP2) and computes on its part of every step's samples.
"""

import dataclasses
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn

from uploader.errors import SettingsError, WmtpError
from wmtp.model.mtp import MTPModel
from wmtp.ranks import Ranks

PREPARING_S = 24 * 3600.0
"""How long others wait while rank 0 fetches models and packs the data. Should it die, torchrun ends them."""

METHODS = ("trunk", "head", "states")
"""Of a model, what is called beside ``forward``: before each, its weights are gathered."""


class RankLost(WmtpError):
    """Another process of the run is gone, and what they do together can't go on."""


@contextmanager
def join(environ: Mapping[str, str], device: str = "auto") -> Iterator[Ranks]:
    """This process among those that torchrun started, while the context lasts; alone where it didn't.

    Args:
        environ: what torchrun put into the environment.
        device: the setting ``devices.device``.

    Raises:
        SettingsError: they are on several machines, or there are fewer devices than ranks.
        WmtpError: what the context raised, with the rank named; ``RankLost`` for a broken connection.
    """
    world_size = int(environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks()
        return
    _require_one_node(world_size, int(environ.get("LOCAL_WORLD_SIZE", world_size)))
    local_rank = int(environ.get("LOCAL_RANK", "0"))
    if device_of(device, local_rank).type == "cuda":
        torch.cuda.set_device(local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    ranks = dataclasses.replace(Ranks.current(), local_rank=local_rank)
    with join_errors(ranks):
        yield ranks
    dist.destroy_process_group()


def _require_one_node(world_size: int, local_world_size: int) -> None:
    if world_size != local_world_size:
        raise SettingsError(
            f"{world_size} ranks are asked for, {local_world_size} of them on this machine",
            subject="--nnodes",
            hint="all ranks of a run must be on one machine: set --nproc-per-node alone",
        )


def device_of(name: str, local_rank: int | None = None) -> torch.device:
    """The device that ``devices.device`` means.

    Args:
        local_rank: of several ranks, each of which has a device of its own; None where there is one.

    Raises:
        SettingsError: there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("there is no CUDA device", subject="devices.device", hint="use auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank is None:
        return torch.device("cuda")
    if local_rank >= torch.cuda.device_count():
        raise SettingsError(
            f"there is no CUDA device for rank {local_rank}, for there are {torch.cuda.device_count()}",
            subject="devices.device",
            hint="lower --nproc-per-node, or use cpu",
        )
    return torch.device("cuda", local_rank)


@contextmanager
def join_errors(ranks: Ranks) -> Iterator[None]:
    """An error says whose it is, on one line: all ranks write to one terminal.

    Raises:
        RankLost: the connection to another rank is broken.
    """
    try:
        yield
    except WmtpError as error:
        if not ranks.is_first:
            error.args = (f"rank {ranks.rank}: {error}",)
        raise
    except RuntimeError as error:
        if not _is_of_a_connection(error):
            raise
        raise RankLost(
            f"rank {ranks.rank}: another rank is gone ({str(error).partition('. ')[0].splitlines()[0]})",
            hint="see what that one said, and resume",
        ) from error


def _is_of_a_connection(error: RuntimeError) -> bool:
    """Gloo raises nothing more special than its name in the message."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def leave(code: int) -> NoReturn:
    """End this process, one of several, at once; what it used is closed already.

    Ended as others are, one in ten is aborted after it was done: by threads of gloo, which still run when
    the objects they belong to are taken down. Then torchrun would call the run failed.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def shard(module: nn.Module, ranks: Ranks) -> None:
    """Leave this rank its part of each weight, in place; gradients are summed over ranks, not averaged.

    Optimizers are built afterwards: the parameters are others then. Nothing is done where there is one rank.
    """
    if ranks.world_size == 1:
        return
    # Its import takes as long as half of torch's, and one rank needs nothing of it.
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if isinstance(module, MTPModel):
        for block in module.blocks():
            fully_shard(block)
    fully_shard(module)
    for method in METHODS:
        if isinstance(module, MTPModel):
            register_fsdp_forward_method(module, method)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)


@contextmanager
def rank_0_first(ranks: Ranks) -> Iterator[None]:
    """Rank 0 goes through this before the others do: they find in the cache what it has brought there."""
    if not ranks.is_first:
        ranks.from_first(timeout_s=PREPARING_S)
    yield
    if ranks.is_first:
        ranks.from_first()


@contextmanager
def as_long_as_rank_0(ranks: Ranks, timeout_s: float) -> Iterator[None]:
    """The others leave this when rank 0 does: with its exit code where it failed, for it has told why.

    Raises:
        SystemExit: rank 0 failed.
        RankLate: rank 0 has been in here for longer than ``timeout_s``.
    """
    try:
        yield
    except WmtpError as error:
        if ranks.is_first:
            ranks.last_word(error.exit_code)
        raise
    if code := ranks.last_word(0, timeout_s=timeout_s):
        raise SystemExit(code)
