"""Each algorithm's step: the same loss, weights and gradients however it is split into micro-batches."""

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from wmtp.data.dataset import NO_TARGET, Batch
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.model.value import ValueHead
from wmtp.objectives.baseline import cross_entropy, uniform_weights
from wmtp.objectives.critic import gae_returns, head_weights, inside_window
from wmtp.objectives.rho1 import kept_weights, softmax_weights
from wmtp.settings.recipe import Critic as CriticSection
from wmtp.training.critic import Critic, Stages
from wmtp.training.objective import Baseline, Measures, Objective, Rho1
from wmtp.training.step import forward_backward, score

TINY = ModelConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, attention_heads=2, kv_heads=1, heads=3
)


def step(samples: int = 6, length: int = 10) -> Batch:
    """The samples of one step, some of their targets missing."""
    draw = torch.Generator().manual_seed(1)
    text = torch.randint(0, 32, (samples, length + 3), generator=draw)
    labels = text[:, 1:].unfold(1, 3, 1).clone()
    labels[0, :4], labels[3, 5:, 2], labels[4] = NO_TARGET, NO_TARGET, NO_TARGET
    return Batch(text, labels, torch.arange(samples))


def parts(batch: Batch, *sizes: int) -> list[Batch]:
    whole = (batch.text, batch.labels, batch.windows)
    return [Batch(*part) for part in zip(*(torch.split(one, sizes) for one in whole), strict=True)]


def model() -> MTPModel:
    made = MTPModel.from_settings(TINY, seed=0)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    return made


REFERENCE = MTPModel.from_settings(TINY, seed=9)


def reference(batch: Batch) -> Tensor:
    return score(REFERENCE, batch)


def rewards(batch: Batch, mask: Tensor) -> Tensor:
    return torch.where(mask, -0.1 * batch.ids.float(), 0.0)


def critic(model: MTPModel, *, value_steps: int) -> Critic:
    head = ValueHead.from_settings(16, seed=3)
    torch.nn.init.normal_(head.value.weight, generator=torch.Generator().manual_seed(4))
    model.value_head = head
    return Critic(model, head, rewards, Stages(value_steps), CriticSection())


OBJECTIVES: dict[str, Callable[[MTPModel], Objective]] = {
    "baseline": Baseline,
    "weighted": partial(Rho1, reference=reference, weigh=softmax_weights),
    "tokenskip": partial(Rho1, reference=reference, weigh=kept_weights),
    "critic-1": partial(critic, value_steps=1),
    "critic-2": partial(critic, value_steps=0),
}
each_objective = pytest.mark.parametrize("name", OBJECTIVES)


def run(name: str, *batches: Batch) -> tuple[Measures, MTPModel]:
    trained = model()
    return OBJECTIVES[name](trained).backward(batches, 0), trained


def gradients(model: MTPModel) -> dict[str, Tensor]:
    return {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


@each_objective
@pytest.mark.parametrize("sizes", [(3, 3), (1, 2, 3), (1, 1, 1, 1, 1, 1)])
def test_nothing_depends_on_the_split(name: str, sizes: tuple[int, ...]) -> None:
    whole, one = run(name, step())
    split, other = run(name, *parts(step(), *sizes))
    assert whole.keys() == split.keys()
    for measure in whole:
        torch.testing.assert_close(split[measure], whole[measure], rtol=1e-6, atol=1e-6, msg=measure)
    assert gradients(one).keys() == gradients(other).keys() != set()
    for weight, gradient in gradients(one).items():
        torch.testing.assert_close(gradients(other)[weight], gradient, rtol=1e-5, atol=1e-6, msg=weight)


@each_objective
def test_a_step_without_targets_has_loss_and_gradients_of_zero(name: str) -> None:
    batch = step()
    batch.labels.fill_(NO_TARGET)
    measures, trained = run(name, *parts(batch, 2, 4))
    assert measures["loss"].item() == 0
    assert gradients(trained) and all(one.abs().max() == 0 for one in gradients(trained).values())


def test_the_loss_of_rho1_is_the_weighted_sum_over_all_targets() -> None:
    batch, trained = step(), model()
    measures, _ = run("weighted", batch)
    nats, valid = score(trained, batch), batch.labels != NO_TARGET
    weights = softmax_weights(nats - reference(batch), valid)
    assert measures["loss"].item() == pytest.approx(((weights * nats).sum() / valid.sum()).item(), rel=1e-5)
    torch.testing.assert_close(measures["heads"], nats.sum(dim=(0, 1)) / valid.sum(dim=(0, 1)))
    assert measures["weight_mean"].item() == pytest.approx(1.0, abs=1e-6)
    assert measures["kept"].item() == 1.0


def test_tokenskip_takes_the_mean_over_what_it_keeps() -> None:
    batch, trained = step(), model()
    measures, _ = run("tokenskip", batch)
    nats, valid = score(trained, batch), batch.labels != NO_TARGET
    kept = kept_weights(nats - reference(batch), valid) == 1
    assert measures["loss"].item() == pytest.approx(nats[kept].mean().item(), rel=1e-5)
    targets = int(valid.sum())
    assert measures["kept"].item() * targets == pytest.approx(-(-7 * targets // 10))


def test_stage_1_trains_the_value_head_and_nothing_else() -> None:
    measures, trained = run("critic-1", step())
    assert measures["stage"].item() == 1 and "heads" not in measures
    assert {name.partition(".")[0] for name in gradients(trained)} == {"value_head"}


def test_stage_2_adds_a_tenth_of_the_value_loss_which_does_not_reach_the_trunk() -> None:
    batch = step()
    measures, trained = run("critic-2", batch)
    assert measures["stage"].item() == 2
    assert measures["weight_mean"].item() == pytest.approx(1.0, abs=1e-6)

    other = model()
    head = critic(other, value_steps=0).head
    values = head(other.trunk(batch.ids).detach())
    mask, valid = batch.labels[..., 0] != NO_TARGET, inside_window(batch.labels != NO_TARGET)
    returns = gae_returns(rewards(batch, mask), values, mask)
    error, weights = (values - returns)[mask].square().mean(), head_weights(values, valid)
    heads = forward_backward(other, batch, weights, weights.sum())
    (0.1 * error).backward()
    assert measures["loss"].item() == pytest.approx((heads.loss + 0.1 * error).item(), rel=1e-5)
    assert (
        gradients(other).keys() == gradients(trained).keys() == {name for name, _ in other.named_parameters()}
    )
    for name, gradient in gradients(other).items():
        torch.testing.assert_close(gradients(trained)[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_stage_2_begins_once() -> None:
    stages = Stages(3)
    assert [stages.enter(step) for step in range(5)] == [1, 1, 1, 2, 2]
    assert stages.state_dict() == {"stage": 2, "value_steps": 3}


def test_a_stage_that_has_begun_keeps_its_border_and_another_follows_the_settings() -> None:
    longer, resumed = Stages(9), Stages(9)
    longer.load_state_dict({"stage": 1, "value_steps": 3})
    resumed.load_state_dict({"stage": 2, "value_steps": 3})
    assert [longer.enter(5), longer.value_steps] == [1, 9]
    assert [resumed.enter(5), resumed.value_steps] == [2, 3]


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most memory that tensors held at a time while ``work`` ran, beyond what there was."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    changes = sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]")
    return max(itertools.accumulate(size_bytes for _, size_bytes in changes))


def joint(model: MTPModel, batch: Batch) -> None:
    logits = model(batch.ids)
    nats = [cross_entropy(logits[:, :, k], batch.labels[..., k]) for k in range(model.config.heads)]
    torch.stack(nats).sum().backward()  # type: ignore[no-untyped-call]


def test_memory_grows_with_the_vocabulary_and_not_with_heads_times_vocabulary() -> None:
    def peaks(heads: int) -> tuple[int, int, int]:
        trained = MTPModel.from_settings(
            ModelConfig(
                vocab_size=4096,
                hidden_size=16,
                intermediate_size=24,
                attention_heads=2,
                kv_heads=1,
                heads=heads,
            ),
            seed=0,
        )
        shapes = (2, 64 + heads), (2, 64, heads), (2,)
        batch = Batch(*(torch.zeros(shape, dtype=torch.int64) for shape in shapes))
        weights = uniform_weights(batch.labels >= 0)
        return (
            peak_bytes(lambda: forward_backward(trained, batch, weights, weights.sum())),
            peak_bytes(lambda: score(trained, batch)),
            peak_bytes(lambda: joint(copy.deepcopy(trained), batch)),
        )

    logits_bytes = 2 * 64 * 4096 * 4
    one, many = peaks(1), peaks(5)
    assert one[0] > 2 * logits_bytes, "the profiler sees the logits"
    assert many[0] - one[0] < logits_bytes / 2
    assert many[1] - one[1] < logits_bytes / 2
    assert many[2] - one[2] > 4 * 2 * logits_bytes
