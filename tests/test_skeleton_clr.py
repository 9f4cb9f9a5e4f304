"""SkeletonCLR: the step against cross-entropy of concatenated logits."""

from __future__ import annotations

import copy

import pytest
import torch
from skelops.methods import STGCN, SkeletonCLR
from torch.nn.functional import cross_entropy, normalize


def test_step_is_cross_entropy_of_the_logits() -> None:
    encoder = STGCN("nw_ucla", width=4, feature_dim=24, dropout=0.0)
    model = SkeletonCLR(encoder, embedding=16, queue_size=64, momentum=0.5).train()
    with torch.no_grad():
        for parameter in model.encoder_k.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    twin = copy.deepcopy(model)
    query, key = torch.randn(2, 8, 3, 16, 20, 1)
    found = model(query, key)

    q = normalize(twin.encoder_q(query), dim=1)
    with torch.no_grad():
        for moving, source in zip(twin.encoder_k.parameters(), twin.encoder_q.parameters(), strict=True):
            moving.lerp_(source, 0.5)
        k = normalize(twin.encoder_k(key), dim=1)
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ twin.queue.queue], 1) / 0.07
    loss = cross_entropy(logits, torch.zeros(8, dtype=torch.int64))
    torch.testing.assert_close(found["loss"], loss, rtol=1e-5, atol=1e-5)
    assert found["accuracy"] == (logits.argmax(1) == 0).float().mean()
    torch.testing.assert_close(model.queue.queue[:, :8], k.T)
    assert torch.equal(model.queue.queue[:, 8:], twin.queue.queue[:, 8:])

    found["loss"].backward()
    loss.backward()
    for (name, ours), theirs in zip(model.encoder_q.named_parameters(), twin.encoder_q.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 0.0), ("temperature", -1.0), ("momentum", 1.5), ("momentum", -0.1)]
)
def test_temperature_and_momentum_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected a .*number .*, got {value}"):
        SkeletonCLR(STGCN("nw_ucla", width=4, feature_dim=8), embedding=4, queue_size=8, **{name: value})
