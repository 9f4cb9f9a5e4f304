"""skelops.methods.STGCN against the released encoder written in plain PyTorch, from the same state_dict."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from conftest import assert_no_worse
from skelops.methods import STGCN
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from skelops.graphs import adjacency

WIDTHS = (1, 1, 1, 1, 2, 2, 2, 4, 4)


class EagerBlock(nn.Module):
    """The released block: conv 1x1, einsum, contiguous; BN, ReLU, conv 9x1, BN, dropout; residual; ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float, residual: bool) -> None:
        super().__init__()
        self.gcn = nn.Module()
        self.gcn.conv = nn.Conv2d(inputs, 3 * outputs, 1)
        self.tcn = nn.Sequential(
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, (9, 1), (stride, 1), (4, 0)),
            nn.BatchNorm2d(outputs),
            nn.Dropout(dropout),
        )
        self.kind = "none" if not residual else "identity" if inputs == outputs and stride == 1 else "conv"
        if self.kind == "conv":
            self.residual = nn.Sequential(nn.Conv2d(inputs, outputs, 1, (stride, 1)), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor, A: Tensor) -> Tensor:
        y = self.gcn.conv(x)
        y = y.view(y.shape[0], 3, -1, *y.shape[2:])
        y = self.tcn(torch.einsum("nkctv,kvw->nctw", y, A).contiguous())
        if self.kind == "none":
            return torch.relu(y)
        return torch.relu(y + (self.residual(x) if self.kind == "conv" else x))


class EagerSTGCN(nn.Module):
    def __init__(self, layout: str, width: int, features: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("A", adjacency(layout, "agcn"))
        self.data_bn = nn.BatchNorm1d(3 * self.A.shape[1])
        widths = [3, *(width * factor for factor in WIDTHS), features]
        self.st_gcn_networks = nn.ModuleList(
            EagerBlock(a, b, 2 if i in (4, 7) else 1, dropout if i else 0.0, i > 0)
            for i, (a, b) in enumerate(itertools.pairwise(widths))
        )
        self.edge_importance = nn.ParameterList(nn.Parameter(torch.ones_like(self.A)) for _ in range(10))

    def feature_map(self, x: Tensor) -> Tensor:
        N, C, T, V, M = x.shape
        x = x.permute(0, 4, 3, 1, 2).contiguous().view(N * M, V * C, T)
        x = self.data_bn(x).view(N, M, V, C, T).permute(0, 1, 3, 4, 2).contiguous().view(N * M, C, T, V)
        for block, importance in zip(self.st_gcn_networks, self.edge_importance, strict=True):
            x = block(x, self.A * importance)
        return x

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        N, M = x.shape[0], x.shape[4]
        F = self.feature_map(x)
        if mask is None:
            return (avg_pool2d(F, F.shape[2:]).view(N, M, -1).mean(1),)
        inside = (F * mask).sum(-1).sum(-1) / mask.sum()
        outside = (F * ~mask).sum(-1).sum(-1) / (~mask).sum()
        return inside.view(N, M, -1).mean(1), outside.view(N, M, -1).mean(1)


def twins(layout: str, dropout: float = 0.0) -> tuple[STGCN, EagerSTGCN]:
    """Both encoders with the same weights, all away from their initial values."""
    ours, eager = STGCN(layout, width=8, feature_dim=40, dropout=dropout), EagerSTGCN(layout, 8, 40, dropout)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in ours.named_buffers():
            if "running" in name:
                buffer.add_(0.3 * torch.rand_like(buffer))
    eager.load_state_dict(ours.state_dict())
    return ours, eager


def run(model: nn.Module, clips: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Outputs, gradients of clips and parameters, and buffers after the step."""
    clips = clips.detach().clone().requires_grad_()
    outputs = model(clips, mask)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    upstream = torch.Generator().manual_seed(5)
    total = sum((o * torch.randn(o.shape, generator=upstream, dtype=torch.float64).to(o)).sum() for o in outputs)
    total.backward()
    found = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    found |= {f"gradient {name}": p.grad for name, p in model.named_parameters()}
    found |= {f"buffer {name}": b for name, b in model.named_buffers() if b.is_floating_point()}
    return {**found, "gradient clips": clips.grad}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("layout", "bodies", "frames"), [("ntu", 2, 16), ("nw_ucla", 1, 13)])
def test_equals_the_released_encoder(layout: str, bodies: int, frames: int, masked: bool, training: bool) -> None:
    ours, eager = (model.train(training) for model in twins(layout))
    joints = ours.layout.num_joints
    clips = torch.randn(4, 3, frames, joints, bodies)
    clips[1, ..., bodies - 1] = 0  # an absent body
    mask = torch.rand(-(-frames // 4), joints) < 0.4 if masked else None
    double, ours_double = copy.deepcopy(eager).double(), copy.deepcopy(ours).double()
    truth = run(double, clips.double(), mask)
    found, low = run(ours, clips, mask), run(eager, clips, mask)
    # In float64 every tensor agrees at its own scale, or at that of all where it is zero but for rounding.
    largest = max(values.abs().max().item() for values in truth.values())
    for name, values in run(ours_double, clips.double(), mask).items():
        torch.testing.assert_close(
            values, truth[name], rtol=1e-9, atol=1e-12 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert found.keys() == truth.keys()
    for name in (name for name in found if name.startswith("gradient")):
        # Where the input of a ReLU is zero but for rounding, float32 may fall to the other side and a gradient jumps,
        # here or in eager: whole tensors are compared, loosely.
        error = (found[name] - truth[name]).norm()
        assert error <= 0.1 * truth[name].norm() + 1e-5 * largest, f"{name}: {error}"
    for kind in ("output", "buffer"):
        # All together, each at its own scale: in a single small tensor eager may be exact by chance.
        names = [name for name in truth if name.startswith(kind)]
        scales = [truth[name].abs().max().clamp(min=1e-3) for name in names]
        parts = (
            torch.cat([(values[name] / scale).flatten() for name, scale in zip(names, scales, strict=True)])
            for values in (found, low, truth)
        )
        ours_all, low_all, truth_all = parts
        assert_no_worse(ours_all.float(), low_all.float(), truth_all, kind, factor=4.0)


def test_names_are_those_of_published_checkpoints() -> None:
    names = STGCN("ntu", width=16).state_dict().keys()
    assert {"A", "data_bn.running_mean", "edge_importance.9", "st_gcn_networks.0.gcn.conv.weight"} <= names
    assert {"st_gcn_networks.4.residual.0.weight", "st_gcn_networks.9.tcn.3.running_var"} <= names
    assert not any(name.startswith("st_gcn_networks.0.residual") for name in names)


def test_size_at_the_published_width() -> None:
    """0.85 M parameters at width 16 and 3.1 M at 64, with the linear layer 256 -> 128 of the released encoder."""
    sizes = [sum(p.numel() for p in STGCN("ntu", width=width).parameters()) for width in (16, 64)]
    assert [size + 256 * 128 + 128 for size in sizes] == pytest.approx([0.85e6, 3.1e6], rel=0.01)


@pytest.mark.parametrize("frames", [64, 50, 25, 1])
def test_last_map_has_a_quarter_of_the_frames(frames: int) -> None:
    encoder = STGCN("ntu", width=4, feature_dim=12).eval()
    clips = torch.randn(2, 3, frames, 25, 2)
    last = encoder.feature_map(clips)
    assert last.shape == (4, 12, -(-frames // 4), 25)
    torch.testing.assert_close(encoder.features(clips), last.mean((2, 3)).view(2, 2, 12).mean(1))


def test_dropout_leaves_the_first_block_alone() -> None:
    rates = [block.tcn[4].p for block in STGCN("ntu", width=4, dropout=0.5).st_gcn_networks]
    assert rates == [0.0] + [0.5] * 9


def test_arguments_build_the_same_encoder() -> None:
    encoder = STGCN("nw_ucla", width=4, feature_dim=12, dropout=0.1)
    twin = STGCN(**encoder.arguments)
    twin.load_state_dict(encoder.state_dict())
    clips = torch.randn(2, 3, 8, 20, 1)
    assert torch.equal(encoder.eval().features(clips), twin.eval().features(clips))


@pytest.mark.parametrize("shape", [(2, 3, 8, 20, 1), (2, 2, 8, 25, 1), (2, 3, 8, 25)])
def test_clips_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^clips: expected shape \(N, 3, T, 25, M\), got"):
        STGCN("ntu", width=4).feature_map(torch.zeros(shape))
