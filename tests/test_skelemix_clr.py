"""SkeleMixCLR: the step against the released formulas in plain PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
from skelops.methods import STGCN, SkeleMixCLR
from skelops.methods.encoders import HCN, Encoder, SCDEncoder
from skelops.methods.momentum_contrast import released_init
from torch import Tensor
from torch.nn.functional import normalize

from skelops.augment import skelemix

SETS = [("ntu", 2), ("nw_ucla", 1)]


def framework(layout: str = "ntu", **arguments: object) -> SkeleMixCLR:
    encoder = STGCN(layout, width=4, feature_dim=24, dropout=0.0)
    return SkeleMixCLR(encoder, **{"embedding": 16, "queue_size": 64, "momentum": 0.9, **arguments})


def views(layout: str = "ntu", bodies: int = 2, clips: int = 8, frames: int = 16) -> tuple[Tensor, Tensor]:
    joints = 25 if layout == "ntu" else 20
    base = torch.randn(clips, 3, frames, joints, bodies)
    return base + 0.1 * torch.randn_like(base), base + 0.1 * torch.randn_like(base)


def multi_nce(logits: Tensor) -> Tensor:
    """The released loss, the positive in column 0: -log(sum(softmax * mask) / sum(mask))."""
    mask = torch.zeros_like(logits)
    mask[:, 0] = 1
    return -((logits.softmax(1) * mask).sum(1) / mask.sum(1)).log().mean()


def released_step(model: SkeleMixCLR, query: Tensor, key: Tensor, seed: int) -> dict[str, Tensor]:
    """One step as released, each term by itself, on a copy of the model; the queue write included."""
    draws = torch.Generator().manual_seed(seed)
    mixes = [skelemix(query, model.encoder_q.layout, draws) for _ in range(model.mixes)]
    q = normalize(model.encoder_q(query), dim=1)
    pairs = [tuple(normalize(z, dim=1) for z in model.encoder_q(mix.clips, mix.mask)) for mix in mixes]
    keys = model.encoder_k
    with torch.no_grad():
        for moving, source in zip(keys.parameters(), model.encoder_q.parameters(), strict=True):
            moving.copy_(moving * 0.9 + source * (1 - 0.9))
        k = normalize(keys(key), dim=1)
    queue = model.queue.queue.clone()

    def logits(anchor: Tensor, positive: Tensor, other: Tensor | None = None) -> Tensor:
        columns = [(anchor * positive).sum(1, keepdim=True), anchor @ queue]
        if other is not None:
            columns.append((anchor * other.detach()).sum(1, keepdim=True))
        return torch.cat(columns, 1) / model.temperature

    instance = multi_nce(logits(q, k))
    trimmed = torch.stack([multi_nce(logits(p, k[mix.partner], c)) for mix, (p, c) in zip(mixes, pairs, strict=True)])
    truncated = torch.stack([multi_nce(logits(c, k, p)) for p, c in pairs])
    local = 0.5 * trimmed + 0.5 * truncated
    loss = instance + (local.sum() if model.plus else local.mean())
    accuracy = (logits(q, k).argmax(1) == 0).float().mean()
    pointer = int(model.queue.queue_ptr)
    model.queue.queue[:, pointer : pointer + len(k)] = k.T
    return {
        "loss": loss,
        "loss_instance": instance,
        "loss_trimmed": trimmed.mean(),
        "loss_truncated": truncated.mean(),
        "accuracy": accuracy,
    }


@pytest.mark.parametrize(("layout", "bodies"), SETS)
@pytest.mark.parametrize(("mixes", "plus"), [(1, False), (3, False), (3, True)])
def test_step_equals_the_released_formulas(layout: str, bodies: int, mixes: int, plus: bool) -> None:
    model = framework(layout, mixes=mixes, plus=plus).train()
    with torch.no_grad():  # the encoders apart, as in the middle of training
        for parameter in model.encoder_k.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    twin = copy.deepcopy(model)
    query, key = views(layout, bodies)
    found = model(query, key, torch.Generator().manual_seed(3))
    expected = released_step(twin, query, key, seed=3)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.float(), rtol=2e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
    found["loss"].backward()
    expected["loss"].backward()
    ours, theirs = ([p.grad for p in m.parameters() if p.grad is not None] for m in (model, twin))
    assert len(ours) == len(theirs) == len(list(model.encoder_q.parameters()))
    ours, theirs = (torch.cat([grad.flatten() for grad in grads]) for grads in (ours, theirs))
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()
    for (name, ours), theirs in zip(model.named_buffers(), twin.buffers(), strict=True):
        if not name.endswith("queue_ptr"):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_only_keys_enter_the_queue_and_only_after_the_logits() -> None:
    model = framework().train()
    query, key = views()
    before = model.queue.queue.clone()
    model(query, key)
    keys = model.queue.queue[:, :8]
    torch.testing.assert_close(keys.norm(dim=0), torch.ones(8))
    assert torch.equal(model.queue.queue[:, 8:], before[:, 8:])
    assert int(model.queue.queue_ptr) == 8
    # Were the keys in the queue before the logits, every query would meet its own key among the negatives.
    assert (keys - before[:, :8]).abs().max() > 0.1


def test_the_key_encoder_follows_without_gradient() -> None:
    model = framework(momentum=0.5).train()
    with torch.no_grad():
        model.encoder_q.data_bn.weight.add_(1.0)
    start = dict(model.encoder_k.named_parameters())
    weight = next(p for name, p in start.items() if name.endswith("data_bn.weight"))
    statistics = next(b for name, b in model.encoder_k.named_buffers() if name.endswith("data_bn.running_mean"))
    model(*views())["loss"].backward()
    torch.testing.assert_close(weight, torch.full_like(weight, 1.5))
    assert statistics.abs().sum() > 0  # batch statistics, as in training
    assert all(p.grad is None and not p.requires_grad for p in model.encoder_k.parameters())
    assert all(p.grad is not None for p in model.encoder_q.parameters())


def test_the_first_key_encoder_is_a_copy_or_released_behaviour_on_demand() -> None:
    def weights(model: SkeleMixCLR) -> list[tuple[Tensor, Tensor]]:
        return list(zip(model.encoder_q.parameters(), model.encoder_k.parameters(), strict=True))

    assert all(torch.equal(a, b) for a, b in weights(framework()))
    assert all(torch.equal(a, b) for a, b in weights(framework(released_weights=True)))
    apart = weights(framework(copy_after_init=False, released_weights=True))
    # Weights differ; biases (0) and edge weights (1) still match: 60 of the 110 tensors of the encoder.
    assert sum(torch.equal(a, b) for a, b in apart[:110]) == 60
    model = framework(released_weights=True)
    convolution = model.encoder_q.st_gcn_networks[9].tcn.convolution
    assert convolution.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert convolution.bias.abs().max() == 0


def test_released_init_leaves_other_modules_alone() -> None:
    edge = STGCN("ntu", width=4)
    edge.apply(released_init)
    assert all(torch.equal(e, torch.ones_like(e)) for e in edge.edge_importance)


def test_a_generator_fixes_the_step() -> None:
    model = framework().train()
    query, key = views()
    losses = []
    for seed in (1, 1, 2):
        twin = copy.deepcopy(model)
        losses.append(twin(query, key, torch.Generator().manual_seed(seed))["loss"].item())
    assert losses[0] == losses[1] != losses[2]


def test_a_pretrained_encoder_keeps_its_weights() -> None:
    encoder = STGCN("ntu", width=4, feature_dim=24)
    before = copy.deepcopy(encoder.state_dict())
    model = SkeleMixCLR(encoder, queue_size=64)
    assert all(torch.equal(model.encoder_q.state_dict()[name], value) for name, value in before.items())


def test_mixes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="^mixes: expected at least 1, got 0"):
        framework(mixes=0)


@pytest.mark.parametrize("encoder", [HCN(width=4, frames=16), SCDEncoder(width=8, frames=16, hidden_dim=16, heads=2)])
def test_encoders_of_which_a_part_would_be_trained_are_refused(encoder: Encoder) -> None:
    name = type(encoder).__name__
    with pytest.raises(ValueError, match=f"encoder: SkeleMixCLR trains the last map.* those of {name} are not"):
        SkeleMixCLR(encoder)


def test_a_positive_is_first_among_negatives_further_away_still() -> None:
    """The logit of 0 that stands for a missing negative beats none: cosines -0.6, 0.6 and -0.9 against one of -0.8."""
    model = framework(embedding=2, queue_size=4)
    model.queue.queue.copy_(torch.tensor([[-0.8], [0.6]]).expand(2, 4))
    anchors = torch.tensor([1.0, 0.0]).expand(2, 3, 2)
    cosines = torch.tensor([-0.6, 0.6, -0.9])
    positives = torch.stack([cosines, (1 - cosines**2).sqrt()], 1).expand(2, 3, 2)
    _, accuracy = model.contrast(anchors, positives, torch.zeros(1, 3, 2))
    assert accuracy.item() == pytest.approx(2 / 3)
