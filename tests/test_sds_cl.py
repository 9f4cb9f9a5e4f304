"""SDS-CL: the attentions and the losses against their formulas in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from skelops.methods import SDSCL
from skelops.methods.encoders import DSTA, HCN, Encoder, SCDEncoder
from skelops.methods.framework import Batch
from skelops.methods.sds_cl import StreamAttention
from torch import Tensor
from torch.nn.functional import cross_entropy, leaky_relu, normalize

from benchmarks.measure import peak_megabytes
from skelops.augment import RandomViews
from skelops.data.transforms import motion_stream


def framework(layout: str = "nw_ucla", **arguments: object) -> SDSCL:
    return SDSCL(DSTA(layout, width=8, heads=2), heads=2, **arguments)


@pytest.mark.parametrize("axis", ["joints", "frames"])
@pytest.mark.parametrize("inter", [False, True], ids=["intra", "inter"])
def test_attention_equals_the_formula(axis: str, inter: bool) -> None:
    """As released: the weights of a query are tanh of its products with the keys, over the length of these."""
    module = StreamAttention(12, 3, axis, inter)
    x, other = torch.randn(2, 4, 12, 6, 20)
    if inter:
        q, (k, v) = module.query(x), module.maps(other).chunk(2, 1)
    else:
        q, k, v = module.maps(x).chunk(3, 1)
    q, k, v = (y.unflatten(1, (3, 4)) for y in (q, k, v))
    if axis == "joints":
        attention = torch.tanh(torch.einsum("nsctu,nsctv->nsuv", q, k) / (4 * 6))
        y = torch.einsum("nsuv,nsctv->nsctu", attention, v)
    else:
        attention = torch.tanh(torch.einsum("nsctv,nscqv->nstq", q, k) / (4 * 20))
        y = torch.einsum("nstq,nscqv->nsctv", attention, v)
    conv, norm = module.out.convolution, module.out.norm
    y = torch.nn.functional.conv2d(y.flatten(1, 2), conv.weight, conv.bias)
    y = torch.nn.functional.batch_norm(y, None, None, norm.weight, norm.bias, training=True)
    expected = leaky_relu(x + y, 0.1)
    torch.testing.assert_close(module(x, other if inter else None), expected, atol=1e-4, rtol=1e-4)


def contrast(a: Tensor, b: Tensor, temperature: float = 0.07) -> Tensor:
    """Tokens (N, P, D) of a clip against each other, the diagonal left out by a mask."""
    P = a.shape[1]
    f = normalize(torch.cat([a, b], 1), dim=2)
    keep = ~torch.eye(2 * P, dtype=torch.bool)
    logits = (f @ f.mT / temperature)[:, keep].view(len(a), 2 * P, 2 * P - 1)
    # Without the diagonal, the partner of token i lies at i + P - 1 in the first half, and at i - P in the second.
    target = torch.cat([torch.arange(P) + P - 1, torch.arange(P)]).expand(len(a), -1)
    return cross_entropy(logits.flatten(0, 1), target.flatten())


@pytest.mark.parametrize(("layout", "bodies"), [("ntu", 2), ("nw_ucla", 1)])
def test_losses_equal_the_formulas(layout: str, bodies: int) -> None:
    model = framework(layout).train()
    joint, motion = torch.randn(2, 4, 3, 16, model.encoder_q.layout.num_joints, bodies)
    y_j, y_m = model.encoder_q.feature_map(torch.cat([joint, motion])).chunk(2)
    means: dict[str, list[Tensor]] = {"joint": [], "motion": []}
    tokens = {}
    for axis in ("joints", "frames"):
        intra, inter = model.attention[f"{axis}_intra"], model.attention[f"{axis}_inter"]
        maps = [intra(y_j), intra(y_m), inter(y_j, y_m), inter(y_m, y_j)]
        maps = [y.unflatten(0, (4, bodies)).mean(1) for y in maps]
        means["joint"] += [maps[0].mean((2, 3)), maps[2].mean((2, 3))]
        means["motion"] += [maps[1].mean((2, 3)), maps[3].mean((2, 3))]
        tokens[axis] = [model.token_projector(y.mean(2 if axis == "frames" else 3).mT) for y in maps]
    pairs = ((0, 1), (0, 3), (2, 1), (2, 3))
    expected = {
        name: torch.stack([contrast(tokens[axis][a], tokens[axis][b]) for a, b in pairs]).sum()
        for name, axis in (("loss_joints", "frames"), ("loss_frames", "joints"))
    }
    whole = [model.global_projector(torch.cat(means[stream], 1))[None] for stream in ("joint", "motion")]
    expected["loss_global"] = contrast(*whole)
    found = model(joint, motion)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-3, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(found["loss"], sum(expected.values()), atol=1e-3, rtol=1e-4)


def test_swapping_the_streams_changes_nothing() -> None:
    model = framework().eval()
    joint, motion = torch.randn(2, 4, 3, 16, 20, 1)
    there, back = model(joint, motion), model(motion, joint)
    for name, value in there.items():
        torch.testing.assert_close(back[name], value, atol=1e-4, rtol=1e-4)


def test_without_tokens_the_global_term_is_all() -> None:
    losses = framework(tokens=False)(*torch.randn(2, 4, 3, 16, 20, 1))
    assert losses.keys() == {"loss", "loss_global"}
    torch.testing.assert_close(losses["loss"].detach(), losses["loss_global"])


@pytest.mark.cpu
def test_attentions_compute_again_as_their_encoder_does() -> None:
    model, streams = framework(), torch.randn(2, 4, 3, 32, 20, 1)
    maps = model.encoder_q.feature_map(torch.cat(tuple(streams))).detach().chunk(2)
    weight = model.attention["frames_inter"].maps.weight

    def gradient() -> Tensor:
        pooled = model._squeeze("frames", *maps, 1)
        return torch.autograd.grad(sum(pools.joints.square().sum() for pools in pooled), weight)[0]

    results, peaks = [], []
    for model.encoder_q.recomputing in (True, False):
        results.append(gradient())
        peaks.append(peak_megabytes(gradient))
    assert torch.equal(*results)
    assert peaks[0] < 0.9 * peaks[1]


@pytest.mark.parametrize("aligned", [True, False])
def test_aligned_streams_share_their_frames(aligned: bool) -> None:
    model = framework(aligned=aligned)
    seen = []
    model.forward = lambda *streams: seen.append(streams) or {}
    # Joint coordinates count the frames, twice as fast with every frame, so that motion tells its frame as well.
    frames = torch.arange(30.0).square()[:, None, None].expand(30, 20, 1)
    clips = frames.expand(4, 3, 30, 20, 1).contiguous()
    views, generator = RandomViews(frames=8, crop=0, shear=0), torch.Generator().manual_seed(0)
    lengths = torch.tensor([30, 30, 12, 12])
    batch = Batch(clips, torch.zeros(4, dtype=torch.int64), torch.arange(4), lengths)
    model.step(batch, lambda x: views(x, generator, lengths), generator)
    joint, motion = seen[0]
    assert joint.shape == motion.shape == (4, 3, 8, 20, 1)
    number = joint[:, 0, :, 0, 0].sqrt()
    expected = torch.where(number < lengths[:, None] - 1, 2 * number + 1, 0)
    assert torch.equal(motion[:, 0, :, 0, 0], expected) == aligned


def test_motion_ends_with_the_clip() -> None:
    clips = torch.randn(2, 3, 6, 20, 1)
    motion = motion_stream(clips, torch.tensor([6, 3]))
    assert torch.equal(motion[0], motion_stream(clips)[0])
    assert torch.equal(motion[1, :, :2], clips[1, :, 1:3] - clips[1, :, :2])
    assert not motion[1, :, 2:].any()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="heads: expected a divisor of the 32 channels of the last map, got 5"):
        SDSCL(DSTA("ntu", width=8, heads=2), heads=5)


@pytest.mark.parametrize("encoder", [HCN(width=4, frames=16), SCDEncoder(width=8, frames=16, hidden_dim=16, heads=2)])
def test_encoders_of_which_a_part_would_be_trained_are_refused(encoder: Encoder) -> None:
    name = type(encoder).__name__
    with pytest.raises(ValueError, match=f"encoder: SDSCL trains the last map.* those of {name} are not"):
        SDSCL(encoder)
