"""The recipe: what is trained. Run name, algorithm, data, model, optimizer, loss; never where it runs.

A field of ``train.checkpointing`` that is None inherits the config's. The built-in defaults are the
baseline on Python's standard library.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wmtp.settings.fields import (
    Count,
    Fraction,
    KeepLast,
    NotNegative,
    Positive,
    RetentionRules,
    Rules,
    RunName,
    SaveInterval,
    Section,
)

BYTES = "bytes"
"""The tokenizer that needs no file: a token for each byte."""

Algo = Literal["baseline-mtp", "rho1-weighted", "rho1-tokenskip", "critic-wmtp", "rho1-wmtp"]
SelectionMode = Literal["weighted", "tokenskip"]
HeldOutMetric = Literal[
    "bits_per_byte",
    "held_out",
    "held_out_accuracy",
    "ema_bits_per_byte",
    "ema_held_out",
    "ema_held_out_accuracy",
]
"""What a validation gives as one number: of each head's, head 0's; ``ema_…`` is that of averaged weights."""

MODELS_NEEDED: dict[Algo, tuple[str, ...]] = {
    "baseline-mtp": (),
    "rho1-weighted": ("ref",),
    "rho1-tokenskip": ("ref",),
    "critic-wmtp": ("rm", "ref"),
    "rho1-wmtp": ("ref",),
}
"""Of which of the config's ``paths.models`` an algorithm needs one; the first that is set is used."""


class Run(Section):
    """What the run is called; its name is its directory and its prefix in the bucket."""

    name: RunName = "stdlib-mtp"
    tags: list[str] = []


class Checkpointing(Section):
    """What this recipe wants other than the config; None inherits.

    Attributes:
        retention, local_retention: rule by rule.
        checkpoint_path: base of the run, in place of the config's ``base_path``.
        auto_resume_latest: as ``--resume auto``: start fresh only where it is proven that nothing is there.
    """

    save_interval: SaveInterval | None = None
    keep_last: KeepLast | None = None
    retention: Rules = RetentionRules()
    local_retention: Rules = RetentionRules()
    save_final: bool | None = None
    checkpoint_path: str | None = None
    auto_resume_latest: bool = False


class Validation(Section):
    """Measuring the model on held-out text while it trains: its loss, accuracy and bits a byte.

    Attributes:
        every: steps from one validation to the next; None measures once, at the end of the run.
        samples: windows to measure on, spread over what is held out.
    """

    every: Count | None = None
    samples: Count = 256


class EarlyStopping(Section):
    """The end of a run that gets no better.

    Attributes:
        metric: which of a validation's numbers must get better.
        mode: whether lower or higher is better.
        patience: validations without a new best after which the run ends; None never ends it.
        min_delta: a new best is better by more than this.
    """

    metric: HeldOutMetric = "bits_per_byte"
    mode: Literal["min", "max"] = "min"
    patience: Count | None = None
    min_delta: NotNegative = 0.0

    @model_validator(mode="after")
    def _the_better_way(self) -> Self:
        if self.metric.endswith("accuracy") != (self.mode == "max"):
            better = "min" if self.mode == "max" else "max"
            raise ValueError(f"mode {self.mode} is worse for {self.metric}: set mode to {better}")
        return self


class Train(Section):
    """The algorithm and how long it runs: ``max_steps`` or ``num_epochs``; with neither, 400 steps."""

    algo: Algo = "baseline-mtp"
    max_steps: Count | None = None
    num_epochs: Count | None = None
    validation: Validation = Validation()
    early_stopping: EarlyStopping = EarlyStopping()
    checkpointing: Checkpointing = Checkpointing()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.max_steps is not None and self.num_epochs is not None:
            raise ValueError("max_steps and num_epochs are both set: set one of them to null")
        return self


class Data(Section):
    """Text and batches.

    Attributes:
        train: a name of the config's ``paths.datasets``, a path or URI, or ``stdlib``.
        format: whether its files are texts or hold JSON records, a line each; ``auto`` tells by their names.
        text_field: of records, the field that holds the text; None tells prompt and solution by the fields.
        tokenizer: ``bytes``, or the path or URI of a ``tokenizer.json`` or of its directory; None is that of
            ``paths.models.base``, bytes where there is no base.
        validation_fraction: share of the data held out; 0 holds out nothing.
        sequence_length: tokens a sequence.
        batch_size: sequences a forward pass.
        gradient_accumulation: forward passes a step.
    """

    train: str = "stdlib"
    format: Literal["auto", "text", "records"] = "auto"
    text_field: str | None = None
    tokenizer: str | None = None
    validation_fraction: Fraction = 0.01
    sequence_length: Annotated[int, Field(ge=2)] = 128
    batch_size: Count = 8
    gradient_accumulation: Count = 1


class Model(Section):
    """The decoder: a shared trunk of layers, then ``heads`` prediction heads of one layer each.

    Where ``paths.models.base`` is set the model has its shape, and only ``heads`` and ``dropout`` hold.

    Attributes:
        attention_heads: query heads of a layer; each group of them shares one of ``kv_heads``.
        max_sequence_length: longest sample, in tokens.
    """

    hidden_size: Count = 128
    intermediate_size: Count = 384
    trunk_layers: Count = 2
    heads: Count = 4
    attention_heads: Count = 4
    kv_heads: Count = 2
    rope_theta: Positive = 10_000.0
    max_sequence_length: Annotated[int, Field(ge=2)] = 1024
    dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.hidden_size % (2 * self.attention_heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} is not attention_heads {self.attention_heads} times an even"
                " number, which rotary embedding needs"
            )
        if self.attention_heads % self.kv_heads:
            raise ValueError(
                f"attention_heads {self.attention_heads} is not a multiple of kv_heads {self.kv_heads}"
            )
        return self


class Optim(Section):
    """AdamW, warm-up and cosine as a function of the step.

    Attributes:
        warmup_steps: steps of linear warm-up; None is a tenth of all steps.
        min_lr_ratio: the last step's learning rate as a share of the highest.
        ema_decay: of an average of the weights, kept beside them: what a step leaves of it; None keeps none.
        max_bad_steps: how many steps in a row may have a loss or gradients that are not finite. Such a step
            changes nothing; the last of so many ends the run.
    """

    learning_rate: Positive = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: NotNegative = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    clip_norm: Positive = 1.0
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_bad_steps: Count = 3

    def warmup_of(self, max_steps: int) -> int:
        """Steps of warm-up in a run of ``max_steps`` steps."""
        return max_steps // 10 if self.warmup_steps is None else self.warmup_steps


class Rho1(Section):
    """Weights from the excess loss over the reference model.

    Attributes:
        temperature: of the softmax of z-scores that makes weights.
        clip: lowest and highest weight of a token.
        keep_ratio: share of the tokens kept when others are skipped.
        selection_mode: None follows ``train.algo`` (``rho1-wmtp``: weighted).
    """

    temperature: Positive = 0.7
    clip: tuple[NotNegative, Positive] = (0.05, 3.0)
    keep_ratio: Annotated[float, Field(gt=0, le=1)] = 0.7
    selection_mode: SelectionMode | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip {list(self.clip)} is not [lowest, highest]")
        return self


class Critic(Section):
    """Heads weighed by the rise of a value head, which is fitted first, to returns of rewards.

    Attributes:
        stage1_steps: steps of stage 1, which fits the value head to a frozen trunk; None is a fifth of all.
        value_learning_rate: of the value head, in both stages.
        gamma: discount of a reward for each token it lies ahead.
        gae_lambda: how far returns trust rewards (1) rather than the next value (0).
        delta_lambda: how much of the value before is taken off to get a value's rise.
        temperature: of the softmax over heads.
        value_weight: of the value's mean squared error in stage 2's loss.
    """

    stage1_steps: Count | None = None
    value_learning_rate: Positive = 1e-2
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.99
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    delta_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    temperature: Positive = 0.7
    value_weight: NotNegative = 0.1

    def stage1_of(self, max_steps: int) -> int:
        """Steps of stage 1 in a run of ``max_steps`` steps."""
        return max(1, max_steps // 5) if self.stage1_steps is None else self.stage1_steps


class Loss(Section):
    """One section for each way to weight tokens; ``train.algo`` picks."""

    rho1: Rho1 = Rho1()
    critic: Critic = Critic()


class Recipe(Section):
    """One recipe file, whole; every field has a default."""

    run: Run = Run()
    train: Train = Train()
    data: Data = Data()
    model: Model = Model()
    optim: Optim = Optim()
    loss: Loss = Loss()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        mode, named = self.loss.rho1.selection_mode, self.train.algo.removeprefix("rho1-")
        if mode is not None and named in ("weighted", "tokenskip") and mode != named:
            raise ValueError(f"train.algo {self.train.algo} contradicts loss.rho1.selection_mode {mode}")
        if self.data.sequence_length <= self.model.heads:
            raise ValueError(
                f"data.sequence_length {self.data.sequence_length} leaves no target"
                f" for each of model.heads {self.model.heads}"
            )
        return self
