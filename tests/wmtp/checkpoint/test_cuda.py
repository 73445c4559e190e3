"""Snapshots of tensors on a CUDA device: pinned host memory, a side stream, events. Needs a device."""

from datetime import UTC, datetime

import pytest
import torch
from toys import bits, make_net

from uploader.layout import RunDirectory
from uploader.watch import read_step
from wmtp.checkpoint.load import read_checkpoint
from wmtp.checkpoint.saver import Saver
from wmtp.checkpoint.writer import Description

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def test_what_is_saved_is_the_state_at_the_call(directory: RunDirectory) -> None:
    model = make_net(width=4096).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    what = Description("run", 0, 1, datetime(2026, 1, 1, tzinfo=UTC), {}, {})
    saver = Saver(directory, what, model=model, optimizers={"main": optimizer}, extra={})
    expected = {}
    for step in range(1, 6):
        model(torch.randn(4096, 4, device="cuda")).square().mean().backward()
        saver.fence()
        optimizer.step()
        optimizer.zero_grad()
        expected[step] = {name: one.detach().clone() for name, one in model.state_dict().items()}
        assert saver.save(step, wait_if_busy=True)
    model(torch.randn(4096, 4, device="cuda")).square().mean().backward()
    optimizer.step()
    saver.close()
    for step, state in expected.items():
        path = directory.step(step)
        tensors = read_checkpoint(path, read_step(path).record).tensors
        assert all(bits(tensors[name]) == bits(one.cpu()) for name, one in state.items())


def test_the_fence_does_not_hold_up_the_host(directory: RunDirectory) -> None:
    """On a device the order is kept by events: nothing on CPU is left to wait for."""
    model = make_net(width=4096).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    what = Description("run", 0, 1, datetime(2026, 1, 1, tzinfo=UTC), {}, {})
    saver = Saver(directory, what, model=model, optimizers={"main": optimizer}, extra={})
    model(torch.randn(16, 4, device="cuda")).mean().backward()
    optimizer.step()
    assert saver.save(1)
    assert not saver._snapshot.order()
    saver.close()
    assert saver.saved[0].error is None
