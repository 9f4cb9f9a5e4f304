"""SkeAttnCLR: the mask, and the step against its formulas in plain PyTorch."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from skelops.methods import STGCN, SkeAttnCLR
from skelops.methods.encoders import HCN
from skelops.methods.skeattn_clr import AttentionMask
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from skelops.augment import skelemix


def framework(layout: str = "ntu", **arguments: object) -> SkeAttnCLR:
    encoder = STGCN(layout, width=4, feature_dim=24, dropout=0.0)
    return SkeAttnCLR(encoder, **{"embedding": 16, "queue_size": 64, "momentum": 0.9, "heads": 4, **arguments})


def test_mask_is_attention_among_the_cells() -> None:
    module, x = AttentionMask(12, heads=3), torch.randn(2, 12, 4, 5)
    mask = module(x)
    tokens = x.flatten(2).mT
    q, k, v = module.qkv(module.norm(tokens)).view(2, 20, 3, 3, 4).permute(2, 0, 3, 1, 4)
    y = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(2, 20, 12)
    expected = torch.sigmoid(2 * module.out(y)).mT.view(x.shape)
    torch.testing.assert_close(mask, expected)
    assert mask.is_contiguous(memory_format=torch.channels_last)


def test_a_mask_of_one_half_halves_the_mean() -> None:
    features = torch.randn(4, 24, 3, 25)
    parts = SkeAttnCLR._pool(features, torch.full_like(features, 0.5), 2)
    mean = features.mean((2, 3)).unflatten(0, (2, 2)).mean(1)
    for part in parts:
        torch.testing.assert_close(part, mean / 2)


def plain_step(model: SkeAttnCLR, query: Tensor, key: Tensor, seed: int) -> dict[str, Tensor]:
    """One step, each term by itself."""
    generator, bodies = torch.Generator().manual_seed(seed), query.shape[4]
    mixed = skelemix(query, model.encoder_q.layout, generator, (3, 4), (4 / 16, 7 / 16)).clips

    def over_bodies(x: Tensor) -> Tensor:
        return x.mean((2, 3)).unflatten(0, (-1, bodies)).mean(1)

    project = model.encoder_q.fc
    z = model.predictors["whole"](project(over_bodies(model.encoder_q.feature_map(query))))
    features = model.encoder_q.feature_map(mixed)
    mask = model.mask(features)
    salient, rest = (project(over_bodies(features * m)) for m in (mask, 1 - mask))
    q_s, q_r = model.predictors["salient"](salient), model.predictors["rest"](rest)
    q = [normalize(x, dim=1) for x in (z, q_s, q_r)]
    with torch.no_grad():
        momentum = 1 - (1 - model.momentum) * (math.cos(math.pi * model.progress) + 1) / 2
        for moving, source in zip(model.encoder_k.encoder.parameters(), model.encoder_q.parameters(), strict=True):
            moving.lerp_(source, 1 - momentum)
        for moving, source in zip(model.encoder_k.encoder.buffers(), model.encoder_q.buffers(), strict=True):
            moving.lerp_(source, 1 - momentum) if moving.is_floating_point() else moving.copy_(source)
        encoder = model.encoder_k.encoder
        features = encoder.feature_map(key)
        k = [normalize(encoder.fc(over_bodies(features * m)), dim=1) for m in (1, mask, 1 - mask)]

    def term(i: int, other: Tensor | None) -> Tensor:
        columns = [(q[i] * k[i]).sum(1, keepdim=True), q[i] @ model.queue.queue]
        if other is not None:
            columns.append((q[i] * other.detach()).sum(1, keepdim=True))
        return cross_entropy(torch.cat(columns, 1) / model.temperature, torch.zeros(len(z), dtype=torch.int64))

    whole, of_salient, of_rest = term(0, None), term(1, q[2]), term(2, q[1])
    loss = whole + model.salience * of_salient + (1 - model.salience) * of_rest
    return {"loss": loss, "loss_whole": whole, "loss_salient": of_salient, "loss_rest": of_rest}


@pytest.mark.parametrize(("layout", "bodies"), [("ntu", 2), ("nw_ucla", 1)])
@pytest.mark.parametrize("salience", [0.5, 1.0])
def test_step_equals_the_formulas(layout: str, bodies: int, salience: float) -> None:
    model = framework(layout, salience=salience).train()
    model.progress = 0.3
    with torch.no_grad():  # the encoders apart, as in the middle of training
        for parameter in model.encoder_k.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    twin = copy.deepcopy(model)
    query, key = torch.randn(2, 8, 3, 16, model.encoder_q.layout.num_joints, bodies)
    found = model(query, key, torch.Generator().manual_seed(3))
    expected = plain_step(twin, query, key, seed=3)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    found["loss"].backward()
    expected["loss"].backward()
    ours, theirs = (torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None]) for m in (model, twin))
    assert ours.shape == theirs.shape
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_projector_and_predictors_have_no_biases_but_those_of_their_normalisation() -> None:
    model = framework()
    for module in (model.encoder_q.fc, model.encoder_k.encoder.fc, *model.predictors.values()):
        assert [name for name, _ in module.named_parameters()] == ["0.weight", "1.weight", "1.bias", "3.weight"]


def test_momentum_rises_to_one() -> None:
    model = framework().train()
    model.progress = 1.0
    with torch.no_grad():
        for parameter in model.encoder_q.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in model.encoder_k.parameters()]
    model(*torch.randn(2, 4, 3, 16, 25, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, model.encoder_k.parameters(), strict=True))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="encoder: SkeAttnCLR trains the last map.* those of HCN are not"):
        SkeAttnCLR(HCN(frames=16))
    with pytest.raises(ValueError, match="salience: expected 0 to 1, got 2"):
        framework(salience=2)
    with pytest.raises(ValueError, match="heads: expected a divisor of the 24 channels, got 5"):
        framework(heads=5)
