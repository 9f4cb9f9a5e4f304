"""fill_first: the frameworks with a queue learn nothing before it holds keys of clips alone."""

from __future__ import annotations

import pytest
import torch
from framework_cases import CLIPS, FRAMEWORKS, MOCO, batch, make

WITH_QUEUE = [name for name, (_, arguments, *_) in FRAMEWORKS.items() if "queue_size" in arguments]


@pytest.mark.parametrize("name", WITH_QUEUE)
def test_learns_from_queues_of_keys_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    released = make(name)
    framework, of_framework, *encoder = FRAMEWORKS[name]
    monkeypatch.setitem(FRAMEWORKS, name, (framework, {**of_framework, "fill_first": True}, *encoder))
    filling = make(name)
    missing = filling.load_state_dict(released.state_dict(), strict=False)
    assert missing.missing_keys == ["keys_seen"] and not missing.unexpected_keys
    full = -(-MOCO["queue_size"] // CLIPS)
    for step in range(full + 2):
        losses, gradients = [], []
        for model in (released, filling):
            generator = torch.Generator().manual_seed(step)
            torch.manual_seed(step)
            loss = model.step(batch(), lambda clips: clips + torch.randn_like(clips), generator)["loss"]
            parameters = list(model.encoder_q.parameters())
            losses.append(loss)
            gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
        assert losses[0] > 0 and losses[1] == (losses[0] if step >= full else 0)
        for of_released, of_filling in zip(*gradients, strict=True):
            assert torch.equal(of_filling, of_released if step >= full else torch.zeros_like(of_released))
