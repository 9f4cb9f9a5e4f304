"""What every framework must be: one graph, no waiting for the device, trainable in bfloat16 and on any set."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from framework_cases import CLIPS, FRAMES, FRAMEWORKS, batch, make
from skelops.methods.framework import Batch, Framework
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import skelops
from skelops.augment import MaskedViews, RandomViews, Views

every_framework = pytest.mark.parametrize("name", FRAMEWORKS)


def step(model: Framework, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    """The losses of a batch, views drawn from torch's global generator; gradients are added up."""
    torch.manual_seed(seed)
    losses = model.step(batch, RandomViews(rotation=30), None)
    losses["loss"].backward()
    return losses


def gradients(model: Framework) -> dict[str, Tensor]:
    return {f"gradient {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}


def check_compiled(name: str, device: str | torch.device, backend: str, **bounds: float) -> None:
    """Views, mixes, forward, momentum update and queue or bank compiled together, without a graph break, give the
    losses, the gradients and the state of the eager step."""
    model, compiled = (make(name, shallow=True).to(device) for _ in range(2))
    compiled.load_state_dict(model.state_dict())
    compiled.step = torch.compile(compiled.step, fullgraph=True, backend=backend)
    clips = batch(device=device)
    found, expected = ({**step(m, clips), **gradients(m), **m.state_dict()} for m in (compiled, model))
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], **bounds, msg=lambda m, k=key: f"{k}: {m}")


@every_framework
def test_the_step_is_one_graph(name: str) -> None:
    """Nothing is read on the host, and no shape depends on data."""
    check_compiled(name, "cpu", "eager")


def test_a_schedule_does_not_compile_every_step_anew() -> None:
    """Momentum of SkeAttnCLR follows the progress of training."""
    model, counter = make("SkeAttnCLR", shallow=True), CompileCounter()
    compiled = torch.compile(model.step, fullgraph=True, backend=counter)
    clips = batch()
    for number in range(5):
        model.progress = number / 7
        compiled(clips, RandomViews(), None)
    assert counter.frame_count <= 2


class Waits(TorchFunctionMode):
    """Finds what comes from the host to the meta device, which waits on a GPU. (Reading a meta tensor is an error.)"""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in (args, result))
        index = args[1] if function is Tensor.__getitem__ else None
        from_list = function in (torch.tensor, torch.as_tensor) or any(
            isinstance(x, list) for x in (index if isinstance(index, tuple) else [index])
        )
        if any(x.is_meta for x in made) and (from_list or any(x.is_cpu and x.dim() for x in given)):
            self.found.append(getattr(function, "__name__", str(function)))
        return result


class Dispatched(TorchDispatchMode):
    """Sends calls of ops through the dispatcher, which knows what they return on the meta device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@pytest.fixture
def meta_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast knows no meta device; it is off."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)


@every_framework
@pytest.mark.usefixtures("meta_autocast")
def test_no_step_waits_for_the_device(name: str) -> None:
    """On the meta device, whose tensors have no values that could be waited for."""
    model, clips = make(name, shallow=True).to("meta"), batch(device="meta")
    with Dispatched(), Waits() as waits:
        step(model, clips)
    assert waits.found == []


@pytest.mark.parametrize("views", [RandomViews(30, 30, 0.5, True, FRAMES), MaskedViews(frames=FRAMES)], ids=type)
def test_no_view_waits_for_the_device(views: Views) -> None:
    """Lengths of clips are read where they lie on the host alone; constants are copied to the device once."""
    clips = batch(device="meta")
    views(clips.clips, None, clips.lengths)
    with Dispatched(), Waits() as waits:
        views(clips.clips, None, clips.lengths)
    assert waits.found == []


@every_framework
def test_bfloat16(name: str) -> None:
    """Under autocast the losses stay near those of float32, gradients too where those of eager ops do, and what is
    kept between steps stays float32."""
    model, clips = make(name), batch()
    step(model, clips)  # fills queues and banks
    model.zero_grad()
    twin, eager = copy.deepcopy(model), copy.deepcopy(model)
    expected = step(twin, clips)
    with torch.autocast("cpu", torch.bfloat16), skelops.backend("reference"):
        step(eager, clips)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(model, clips)
    for key, value in found.items():
        assert value.dtype == torch.float32, key
        if key.startswith("loss"):
            torch.testing.assert_close(value, expected[key], rtol=0.05, atol=0.05, msg=lambda m, k=key: f"{k}: {m}")
    ours, exact, theirs = (torch.cat([g.flatten() for g in gradients(m).values()]) for m in (model, twin, eager))
    assert ours.isfinite().all()
    errors = [1 - torch.cosine_similarity(found, exact, 0) for found in (ours, theirs)]
    assert errors[0] < (0.1 if errors[1] < 0.1 else 2 * errors[1]), "no worse than eager, as everywhere"
    kept = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    assert {value.dtype for value in (*kept.values(), *gradients(model).values())} == {torch.float32}
    assert all(value.isfinite().all() for value in kept.values())


@every_framework
@pytest.mark.parametrize("layout", ["ntu", "nw_ucla"])
@pytest.mark.parametrize("bodies", [1, 2])
def test_trains_on_every_set(name: str, layout: str, bodies: int) -> None:
    """25 and 20 joints, one body and two, of which the second may be absent."""
    model, clips = make(name, layout, bodies, dropout=0.5), batch(layout, bodies)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses = []
    for seed in range(3):
        optimizer.zero_grad()
        found = step(model, clips, seed)
        assert all(value.isfinite() for value in found.values())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in optimizer.param_groups[0]["params"])
        optimizer.step()
        losses.append(found["loss"].item())
    assert len(set(losses)) == 3
    after = model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    for part in ("encoder_q", "encoder_k", "queue", "banks", "heads", "attention", "predictors"):
        present = [key for key in before if key.startswith(part)]
        assert not present or any(key.startswith(part) for key in moved), part
    if "queue.queue_ptr" in after:
        assert int(after["queue.queue_ptr"]) == 3 * CLIPS % 40
