"""The value head: its shape, its start, and that it can learn."""

import torch

from wmtp.model.value import ValueHead


def test_it_has_two_layers_and_begins_at_zero() -> None:
    head = ValueHead.from_settings(16, seed=0)
    assert {name: tuple(one.shape) for name, one in head.named_parameters()} == {
        "hidden.weight": (8, 16), "hidden.bias": (8,), "value.weight": (1, 8), "value.bias": (1,),
    }  # fmt: skip
    assert torch.equal(head(torch.randn(2, 3, 16)), torch.zeros(2, 3))


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    one, other = ValueHead.from_settings(16, seed=3), ValueHead.from_settings(16, seed=3)
    assert torch.equal(one.hidden.weight, other.hidden.weight)
    assert not torch.equal(one.hidden.weight, ValueHead.from_settings(16, seed=4).hidden.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_linear_relu_linear() -> None:
    head = ValueHead.from_settings(4, seed=0)
    with torch.no_grad():
        head.hidden.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
        head.hidden.bias.copy_(torch.tensor([0.0, -1.0]))
        head.value.weight.copy_(torch.tensor([[2.0, 3.0]]))
        head.value.bias.fill_(0.5)
    assert head(torch.tensor([[[1.0, 3, 9, 9], [-1.0, 0, 9, 9]]])).tolist() == [[8.5, 0.5]]


def test_it_computes_in_float32_whatever_surrounds_it() -> None:
    head = ValueHead.from_settings(16, seed=0)
    torch.nn.init.normal_(head.value.weight)
    hidden = torch.randn(1, 2, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(hidden)
    assert torch.equal(inside, head(hidden))
