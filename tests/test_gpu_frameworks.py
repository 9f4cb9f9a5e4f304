"""Whole training steps of the frameworks on a GPU: captured in a CUDA graph, compiled, without waiting.

Where there is no GPU, a captured step is the step itself, so that the tests are known to run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import captured
from framework_cases import CLIPS, FRAMEWORKS, batch, make
from skelops.methods.framework import Batch, Framework
from test_frameworks import check_compiled
from test_gpu import DEVICE, GPU, on_gpu, waiting_is_an_error
from torch import Generator, Tensor
from torch._inductor import config as inductor_config

from skelops.augment import RandomViews

VIEWS = RandomViews(rotation=30)
Losses = dict[str, Tensor]
every_framework = pytest.mark.parametrize("name", FRAMEWORKS)


class Step:
    """A training step on one batch in place: views, forward, backward, optimizer, and what the framework keeps."""

    def __init__(self, model: Framework, clips: Batch, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.clips, self.dtype = model, clips, dtype
        self.generator = Generator(DEVICE)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9)

    def __call__(self) -> Losses:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, self.dtype, enabled=self.dtype != torch.float32):
            losses = self.model.step(self.clips, lambda x: VIEWS(x, self.generator), self.generator)
        losses["loss"].backward()
        self.optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.generator.manual_seed(seed)

    def start_from(self, other: Step) -> None:
        self.model.load_state_dict(other.model.state_dict())
        self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))


def made(name: str, dtype: torch.dtype = torch.float32) -> Step:
    return Step(make(name, dropout=0.5).to(DEVICE), batch(device=DEVICE), dtype)


def replayed(step: Step) -> Callable[[], Losses]:
    """Replays the step from a CUDA graph; warm-up steps have changed its state."""
    if not GPU:
        for _ in range(3):
            step()
        return step
    graph, losses = captured(step, step.generator)

    def replay() -> Losses:
        graph.replay()
        return losses

    return replay


@every_framework
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_is_one_cuda_graph(name: str, dtype: torch.dtype) -> None:
    """A step that was captured once, replayed on other clips and random numbers, is the step run anew.

    Momentum of SkeAttnCLR and learning rates are numbers of the host: a graph keeps those of its capture.
    """
    step, eager = made(name, dtype), made(name, dtype)
    replay = replayed(step)
    eager.start_from(step)
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    seen = []
    for seed in range(3):
        clips = torch.randn_like(step.clips.clips)
        for one in (step, eager):
            one.clips.clips.copy_(clips)
        step.seed(seed)
        found = {key: value.clone() for key, value in replay().items()}
        eager.seed(seed)
        expected = eager()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], **near, msg=lambda m, k=key: f"{k}: {m}")
        seen.append(found["loss"].item())
    assert len(set(seen)) == 3
    ours, theirs = step.model.state_dict(), eager.model.state_dict()
    for key, value in theirs.items():
        # Pointers, labels and counters are the same; what is computed may be rounded otherwise.
        bounds = near if value.is_floating_point() else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(ours[key], value, **bounds, msg=lambda m, k=key: f"{k}: {m}")
    if "queue.queue_ptr" in ours:
        assert int(ours["queue.queue_ptr"]) == 6 * CLIPS % 40


@every_framework
class TestOnGpu:
    """What only a GPU can show."""

    pytestmark = on_gpu

    def test_no_waiting(self, name: str) -> None:
        step = made(name)
        for _ in range(2):
            step()  # compiles
        with waiting_is_an_error():
            step()

    def test_compiled_whole(self, name: str) -> None:
        """By torch.compile's own backend, with eager's random numbers."""
        with inductor_config.patch(fallback_random=True):
            check_compiled(name, DEVICE, "inductor", rtol=1e-3, atol=1e-3)
