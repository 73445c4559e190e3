"""The config: where things are and run. Paths, store, devices, launcher; never what is trained.

Paths and locations are kept as written; ``resolve`` makes them absolute.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from uploader.settings import PartsInFlight, PartSize, StorageSettings, UploadSettings
from wmtp.settings.fields import (
    Bandwidth,
    Count,
    KeepLast,
    NotNegative,
    Positive,
    RetentionRules,
    Rules,
    SaveInterval,
    Section,
)

_UPLOAD = UploadSettings()


class Upload(Section):
    """How checkpoints are uploaded.

    Attributes:
        part_size_bytes: wanted size of a part; a slow or distant store gets larger ones.
        parts_in_flight: how many parts are sent at once at most; fewer while the store asks for patience.
        max_bandwidth: what uploads may take of the network in all: ``50MB``, ``400Mbit``, or bytes a second.
        pacing: whether uploads stand back where they make training steps slower.
        request_timeout_s: when a request is abandoned and sent again, beside the time its bytes may take.
        max_wait_s: longest wait between two attempts.
    """

    part_size_bytes: PartSize = _UPLOAD.part_size_bytes
    parts_in_flight: PartsInFlight = _UPLOAD.parts_in_flight
    max_bandwidth: Bandwidth | None = None
    pacing: bool = _UPLOAD.pacing
    request_timeout_s: Positive = _UPLOAD.request_timeout_s
    max_wait_s: Positive = _UPLOAD.max_wait_s


class CheckpointPaths(Section):
    """Where checkpoints go, how often, and how long they stay.

    Attributes:
        base_path: ``file://``, ``s3://`` or a bare path; the run's name is joined to it.
        local_path: the fast local directory; None means the base itself for ``file://``, ``./ckpt`` for ``s3://``.
        save_interval: steps from one checkpoint to the next.
        keep_last: short for ``retention.keep_last``.
        retention: which committed steps stay in the store; pinned ones always do.
        local_retention: which of them stay on the local disk, too, once they are durable; where nothing is
            set, the last ``keep_last``: rules that keep more and more are for the store.
        save_final: whether the last step is saved whatever the interval.
        shard_size_bytes: a rank's state is cut into files of at most this size.
        background_nice: how far local writes and uploads stand back for others on the CPU (0 to 19).
        delete_grace_s: from a step's leaving the manifest to the deletion of its objects.
        purge_versions: in a bucket that keeps versions: whether those of pruned steps are deleted, too.
        upload: how they get to the store.
        durable_timeout_s: how long the end of training waits for its final checkpoint to be durable.
        store_timeout_s: how long the start of training waits for the store to answer.
        lease_s: how long a start watches an owner on another machine that gives no sign of life.
        heartbeat_s: from one sign of life to the next; None is a sixth of ``lease_s``.
    """

    base_path: str = "file://./checkpoints"
    local_path: str | None = None
    save_interval: SaveInterval = 500
    keep_last: KeepLast | None = 3
    retention: Rules = RetentionRules()
    local_retention: Rules = RetentionRules()
    save_final: bool = True
    shard_size_bytes: Count = 256 * 1024 * 1024
    background_nice: Annotated[int, Field(ge=0, le=19)] = 10
    delete_grace_s: NotNegative = 0.0
    purge_versions: bool = False
    upload: Upload = Upload()
    durable_timeout_s: Positive = 600.0
    store_timeout_s: Positive = 30.0
    lease_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    heartbeat_s: Positive | None = None

    @model_validator(mode="after")
    def _a_lease_is_longer_than_a_heartbeat(self) -> Self:
        if self.heartbeat_s is not None and self.lease_s < 2 * self.heartbeat_s:
            raise ValueError("lease_s must be twice heartbeat_s at least: one beat may be late")
        return self


class ModelPaths(Section):
    """Models an algorithm reads, each a local path or an ``s3://`` URI: base, reference and reward model."""

    base: str | None = None
    ref: str | None = None
    rm: str | None = None


class Paths(Section):
    """Everything that lies somewhere.

    Attributes:
        datasets: name to local path or ``s3://`` URI; a recipe's ``data.train`` names one.
        cache: directory for prepared data and for what was downloaded.
    """

    checkpoints: CheckpointPaths = CheckpointPaths()
    models: ModelPaths = ModelPaths()
    datasets: dict[str, str] = {}
    cache: str = "./.cache"


class Storage(StorageSettings):
    """How the S3 store is reached; credentials come from the AWS chain only.

    Attributes:
        dev_s3: data directory of the embedded development server, which ``wmtp train`` then starts itself.
    """

    dev_s3: str | None = None

    @model_validator(mode="after")
    def _one_server(self) -> Self:
        if self.dev_s3 is not None and self.endpoint_url is not None:
            raise ValueError("dev_s3 and endpoint_url name two servers: keep one")
        return self


class Devices(Section):
    """Where tensors live, and how they are computed.

    Attributes:
        dtype: of matrix products; ``auto`` is bfloat16 on CUDA and float32 on CPU. Weights stay float32.
        compile: whether layers and heads go through ``torch.compile``.
        activation_checkpointing: whether each layer and head computes its activations again in the backward
            pass instead of keeping them: less memory, a third more work, the same gradients.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False


class LauncherResources(Section):
    """The fields of a VESSL run file (docs.vessl.ai/reference/yaml/run-yaml), all optional.

    Attributes:
        imports: ``import`` in the file; path in the container to what is copied there at the start.
        mount: path in the container to the volume mounted there.
        export: path in the container to where it is copied at the end.
    """

    cluster: str | None = None
    preset: str | None = None
    node_names: list[str] = []
    image: str | None = None
    env: dict[str, str] = {}
    imports: Annotated[dict[str, str], Field(alias="import")] = {}
    mount: dict[str, str] = {}
    export: dict[str, str] = {}
    workdir: str | None = None
    command: str | None = None


class Launcher(Section):
    """What starts the run."""

    target: Literal["local", "vessl", "generic"] = "local"
    resources: LauncherResources = LauncherResources()


_TRACKING = ("http", "https", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")


def _check_tracking_uri(uri: str) -> str:
    scheme = uri.partition(":")[0]
    known = scheme.partition("+")[0] in _TRACKING and (uri == scheme or uri.startswith(f"{scheme}://"))
    if not known or any(mark.isspace() for mark in uri):
        raise ValueError(f"no URI of a tracking server or database: write one with {', '.join(_TRACKING)}")
    return uri


class Mlflow(Section):
    """Tracking with MLflow (``pip install 'wmtp[mlflow]'``); off unless enabled.

    Attributes:
        experiment: made where there is none of that name.
        tracking_uri: of a server, or a database URI; None is what MLflow itself takes: its environment
            variables, else ``sqlite:///mlflow.db``. Its user and password are never shown.
    """

    enabled: bool = False
    experiment: Annotated[str, Field(min_length=1)] = "wmtp"
    tracking_uri: Annotated[str, AfterValidator(_check_tracking_uri)] | None = None


class Tensorboard(Section):
    """Event files for TensorBoard.

    Attributes:
        enabled: None writes them where TensorBoard is installed.
        directory: to which the run's name is joined; None is ``tensorboard`` in the run directory.
    """

    enabled: bool | None = None
    directory: str | None = None


class Config(Section):
    """One config file, whole; every field has a default.

    Attributes:
        seed: of initial weights, dropout and data order.
        log_interval: steps from one logged line to the next.
    """

    project: str = "wmtp"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    log_interval: Count = 10
    paths: Paths = Paths()
    storage: Storage = Storage()
    devices: Devices = Devices()
    launcher: Launcher = Launcher()
    mlflow: Mlflow = Mlflow()
    tensorboard: Tensorboard = Tensorboard()
