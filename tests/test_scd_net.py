"""SCD-Net: the step against its formulas in plain PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
from skelops.methods import STGCN, SCDNet
from skelops.methods.encoders import SCDEncoder
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize


def framework() -> SCDNet:
    encoder = SCDEncoder("nw_ucla", bodies=1, frames=16, width=8, hidden_dim=32, heads=2, dropout=0.0)
    return SCDNet(encoder, embedding=16, queue_size=64, momentum=0.5)


def test_step_contrasts_across_domains() -> None:
    model = framework().train()
    with torch.no_grad():
        for parameter in model.encoder_k.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    twin = copy.deepcopy(model)
    query, key = torch.randn(2, 8, 3, 16, 20, 1)
    found = model(query, key)

    q_t, q_s, q_i = (normalize(q, dim=1) for q in twin.encoder_q(query))
    with torch.no_grad():
        for moving, source in zip(twin.encoder_k.parameters(), twin.encoder_q.parameters(), strict=True):
            moving.lerp_(source, 0.5)
        k_t, k_s, k_i = (normalize(k, dim=1) for k in twin.encoder_k(key))

    def term(q: Tensor, k: Tensor, name: str) -> Tensor:
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ getattr(twin, name).queue], 1) / 0.2
        return cross_entropy(logits, torch.zeros(8, dtype=torch.int64))

    expected = {
        "loss_time": term(q_t, k_i, "queue_both"),
        "loss_space": term(q_s, k_i, "queue_both"),
        "loss_to_time": term(q_i, k_t, "queue_time"),
        "loss_to_space": term(q_i, k_s, "queue_space"),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    loss = sum(expected.values())
    torch.testing.assert_close(found["loss"], loss, atol=1e-4, rtol=1e-4)
    for name, k in (("queue_time", k_t), ("queue_space", k_s), ("queue_both", k_i)):
        torch.testing.assert_close(getattr(model, name).queue[:, :8], k.T, atol=1e-5, rtol=1e-4)

    found["loss"].backward()
    loss.backward()
    ours, theirs = (torch.cat([p.grad.flatten() for p in m.encoder_q.parameters()]) for m in (model, twin))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_both_encoders_start_alike() -> None:
    model = framework()
    for q, k in zip(model.encoder_q.parameters(), model.encoder_k.parameters(), strict=True):
        assert torch.equal(q, k)


def test_released_weights_redraw_matrices_alone() -> None:
    """Convolutions and adjacencies stay as the encoder drew them."""
    encoder = SCDEncoder("nw_ucla", bodies=1, frames=16, width=8, hidden_dim=32, heads=2, dropout=0.0)
    before = {name: parameter.clone() for name, parameter in encoder.named_parameters()}
    drawn = SCDNet(encoder, embedding=16, queue_size=64).encoder_q.state_dict()
    for name, parameter in before.items():
        assert torch.equal(drawn[name], parameter) == (parameter.dim() != 2), name
    adjacencies = [name for name in before if name.endswith("PA")]
    assert adjacencies, "the encoder learns its adjacencies"


def test_another_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="encoder: expected SCDEncoder, .* got STGCN, which has one feature"):
        SCDNet(STGCN("ntu", width=4))
