"""The peers that save is measured beside, each driven as its own documentation does; and the list of all."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders import BUCKET, Contender, Context, Ours, OursLocal


class TorchSave(Contender):
    """``torch.save`` in the loop, as most scripts do, without fsync."""

    def save(self, step: int) -> None:
        began_s = time.perf_counter()
        torch.save(self.context.state(), self.path(step))
        self.local_ms.append((time.perf_counter() - began_s) * 1e3)

    def tidy(self) -> None:
        self.remove_saves()


class DcpSave(Contender):
    """``torch.distributed.checkpoint.save`` in the loop."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        _one_process_group()

    def save(self, step: int) -> None:
        from torch.distributed.checkpoint.state_dict_saver import save

        began_s = time.perf_counter()
        save(self.context.state(), checkpoint_id=self.path(step))
        self.local_ms.append((time.perf_counter() - began_s) * 1e3)

    def tidy(self) -> None:
        self.remove_saves()


class Futures(Contender):
    """One that goes on in the background and gives a future; the next save waits for it."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._future: Future[Any] | None = None

    def begin(self, step: int) -> Future[Any]:
        """Begin a save."""
        raise AssertionError

    def save(self, step: int) -> None:
        if self._future is not None:
            self._future.result()
        began_s = time.perf_counter()
        self._future = self.begin(step)
        self._future.add_done_callback(lambda _: self.local_ms.append((time.perf_counter() - began_s) * 1e3))

    def idle(self) -> bool:
        if self._future is None or not self._future.done():
            return self._future is None
        self._future.result()  # or its error
        return True

    def tidy(self) -> None:
        self.remove_saves()


class DcpThread(Futures):
    """``dcp.async_save`` with a thread."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        _one_process_group()

    def begin(self, step: int) -> Future[Any]:
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save

        kind = AsyncCheckpointerType.PROCESS if self.in_process else AsyncCheckpointerType.THREAD
        path = self.path(step)
        future = async_save(self.context.state(), checkpoint_id=path, async_checkpointer_type=kind)
        assert isinstance(future, Future)
        return future

    in_process = False


class DcpProcess(DcpThread):
    """``dcp.async_save`` with a process."""

    in_process = True


class TorchCheckpointing(Futures):
    """``torch_checkpointing``, set so that it runs without CUDA: no pinned memory, no direct I/O."""

    def __init__(self, context: Context) -> None:
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.config import AsyncCheckpointSaverConfig
        from torch_checkpointing.staging import CheckpointStagerConfig
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        super().__init__(context)
        cuda = torch.cuda.is_available()
        staging = CheckpointStagerConfig(use_pinned_memory=cuda, use_non_blocking_copy=cuda)
        self._manager = CheckpointManager(
            CheckpointManager.Config(
                save=AsyncCheckpointSaverConfig(staging_config=staging),
                # Its direct stream writes what is not aligned, which ext4 refuses.
                storage_config=LocalFileSystemStorageConfig(use_direct_io=False),
            )
        )

    def warm_up(self) -> None:
        self._manager.prewarm_staging(self.context.state())

    def begin(self, step: int) -> Future[Any]:
        future = self._manager.save(str(self.path(step)), self.context.state())
        assert future is not None
        return future

    def fence(self) -> None:
        with self._manager.lock():
            pass

    def close(self) -> None:
        self._manager.close()


class CopyThenUpload(Contender):
    """Copy to the CPU, ``torch.save``, upload with boto3, all in the loop: what Composer does."""

    def __init__(self, context: Context) -> None:
        import boto3  # type: ignore[import-untyped]

        super().__init__(context)
        self._client = boto3.client("s3", endpoint_url=context.sink_url, region_name="us-east-1")

    def save(self, step: int) -> None:
        began_s = time.perf_counter()
        torch.save(_copied(self.context.state()), self.path(step))
        self.local_ms.append((time.perf_counter() - began_s) * 1e3)
        self._client.upload_file(str(self.path(step)), BUCKET, f"composer/step_{step}.pt")

    def tidy(self) -> None:
        self.remove_saves()


class S3Connector(Contender):
    """``s3torchconnector``'s writer for ``dcp.save``, straight to a real S3 server."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._url = self.url()

    def url(self) -> str:
        assert self.context.server_url is not None
        return self.context.server_url

    def save(self, step: int) -> None:
        from s3torchconnector import S3ClientConfig
        from s3torchconnector._s3client import S3Client
        from s3torchconnector.dcp import S3StorageWriter
        from s3torchconnector.dcp.s3_file_system import S3FileSystem
        from torch.distributed.checkpoint.state_dict_saver import save

        region, target = "us-east-1", f"s3://{BUCKET}/connector/step_{step}/"
        config = S3ClientConfig(force_path_style=True, max_attempts=2)
        writer = S3StorageWriter(region, target, s3client_config=config)
        client = S3Client(region, endpoint=self._url, s3client_config=config)
        writer.fs = S3FileSystem(region, s3_client=client)  # type: ignore[assignment]
        save(self.context.state(), storage_writer=writer, no_dist=True)


class S3ConnectorToSink(S3Connector):
    """``s3torchconnector``'s writer for ``dcp.save``, straight to the null sink."""

    def url(self) -> str:
        return self.context.sink_url


CONTENDERS: dict[str, Callable[[Context], Contender]] = {
    "none": Contender,
    "ours": Ours,
    "ours-local": OursLocal,
    "torch.save": TorchSave,
    "dcp.save": DcpSave,
    "dcp.async-thread": DcpThread,
    "dcp.async-process": DcpProcess,
    "torch_checkpointing": TorchCheckpointing,
    "copy-then-upload": CopyThenUpload,
    "s3connector-sink": S3ConnectorToSink,
    "s3connector": S3Connector,
}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value


def _one_process_group() -> None:
    """DCP's asynchronous saves ask for a process group."""
    from torch._C._distributed_c10d import HashStore
    from torch.distributed import init_process_group

    init_process_group("gloo", rank=0, world_size=1, store=HashStore())
