"""Every encoder of skelops.methods against its eager twin in benchmarks/eager, from the same state_dict."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_no_worse, captured
from skelops.methods import encoders
from skelops.methods.encoders import Encoder
from skelops.methods.evaluation import random_twin
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import eager
from skelops.graphs import get_layout

#: Arguments that make each encoder small, for clips of 13 frames where it takes any.
SMALL: dict[str, dict[str, Any]] = {
    "STGCN": {"width": 8, "feature_dim": 40, "dropout": 0.0},
    "AGCN": {"width": 8},
    "CTRGCN": {"width": 16},
    "Hyperformer": {"heads": 3, "head_dim": 12},
    "DSTA": {"width": 8},
    "HCN": {"width": 8, "frames": 35, "feature_dim": 20, "dropout": 0.0},
    "SCDEncoder": {"width": 16, "frames": 13, "hidden_dim": 32, "heads": 2, "dropout": 0.0},
}
PER_CLIP = ("AGCN", "CTRGCN", "Hyperformer", "SCDEncoder")
JOINTS = {"ntu": 25, "nw_ucla": 20}
NTU = get_layout("ntu")
every_encoder = pytest.mark.parametrize("name", SMALL)


def arguments(name: str, bodies: int, **others: Any) -> dict[str, Any]:
    return {**SMALL[name], **({"bodies": bodies} if name in PER_CLIP else {}), **others}


def clips_of(encoder: Encoder, bodies: int, clips: int = 4) -> Tensor:
    frames = encoder.arguments.get("frames", 13)
    x = torch.randn(clips, encoder.in_channels, frames, encoder.layout.num_joints, bodies)
    x[1, ..., bodies - 1] = 0  # an absent body
    return x


def stir(model: nn.Module) -> None:
    """Moves all weights and statistics away from their initial values, some of which hide errors."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(0.3 * torch.rand_like(buffer))


def twins(name: str, layout: str, bodies: int) -> tuple[Encoder, nn.Module]:
    """An encoder and its eager twin with the same weights."""
    ours = getattr(encoders, name)(layout, **arguments(name, bodies))
    stir(ours)
    theirs = getattr(eager, name)(layout, **arguments(name, bodies))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def run(model: nn.Module, clips: Tensor) -> dict[str, Tensor]:
    """Output, gradients of clips and parameters, and buffers after the step."""
    clips = clips.detach().clone().requires_grad_()
    output = model(clips)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    output.backward(upstream.to(output))
    # Of an absent body every frame is alike, and where the maximum of a pool lies is rounding.
    found = {"output": output.detach(), "gradient clips": clips.grad * (clips.detach() != 0)}
    found |= {f"gradient {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {f"buffer {name}": x for name, x in model.state_dict().items() if "running" in name}


@every_encoder
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize(("layout", "bodies"), [("ntu", 2), ("nw_ucla", 1)])
def test_equals_its_eager_twin(name: str, layout: str, bodies: int, training: bool) -> None:
    ours, theirs = (model.train(training) for model in twins(name, layout, bodies))
    clips = clips_of(ours, bodies)
    truth = run(copy.deepcopy(theirs).double(), clips.double())
    largest = max(values.abs().max().item() for values in truth.values())
    in_double = run(copy.deepcopy(ours).double(), clips.double())
    assert in_double.keys() == truth.keys()
    for key, values in in_double.items():
        # Buffers made in float32 (means over body parts) are in the last digits; the rest is exact.
        torch.testing.assert_close(values, truth[key], rtol=1e-5, atol=1e-9 * largest, msg=lambda m, k=key: f"{k}: {m}")
    found, low = run(ours, clips), run(theirs, clips)
    for key in (key for key in found if key.startswith("gradient")):
        # Where the input of a ReLU is zero but for rounding, float32 may fall to the other side and a gradient jumps,
        # here or in eager: whole tensors are compared, loosely.
        error = (found[key] - truth[key]).norm()
        assert error <= 0.1 * truth[key].norm() + 2e-5 * largest, f"{key}: {error}, of {truth[key].norm()}"
    for kind in ("output", "buffer") if name != "HCN" else ("output",):  # which has no normalisation
        # All together, each at its own scale: in a single small tensor eager may be exact by chance.
        keys = [key for key in truth if key.startswith(kind)]
        scales = [truth[key].abs().max().clamp(min=1e-3) for key in keys]
        parts = (
            torch.cat([(values[key] / scale).flatten() for key, scale in zip(keys, scales, strict=True)])
            for values in (found, low, truth)
        )
        ours_all, low_all, truth_all = parts
        assert_no_worse(ours_all.float(), low_all.float(), truth_all, kind, factor=4.0)


@every_encoder
def test_features_are_those_of_the_last_map(name: str) -> None:
    encoder = twins(name, "ntu", 2)[0].eval()
    clips = clips_of(encoder, 2)
    last, features = encoder.feature_map(clips), encoder.features(clips)
    frames = clips.shape[2]
    assert last.shape[::2] == (8, -(-frames // encoder.temporal_stride)) and last.shape[3] == 25
    assert features.shape == (4, encoder.feature_dim)
    if name not in ("HCN", "SCDEncoder"):  # their features come from tokens and from joints as channels
        torch.testing.assert_close(features, last.mean((2, 3)).unflatten(0, (4, 2)).mean(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder(clips), features)


@every_encoder
def test_arguments_build_the_same_encoder(name: str) -> None:
    encoder = getattr(encoders, name)("nw_ucla", **arguments(name, 1)).eval()
    twin = type(encoder)(**encoder.arguments).eval()
    twin.load_state_dict(encoder.state_dict())
    clips = clips_of(encoder, 1)
    assert torch.equal(encoder.features(clips), twin.features(clips))


@every_encoder
def test_clips_of_another_shape_are_refused(name: str) -> None:
    encoder = getattr(encoders, name)("ntu", **arguments(name, 2))
    frames = encoder.arguments.get("frames", 13)
    for shape in ((2, 3, frames, 20, 2), (2, 2, frames, 25, 2), (2, 3, frames, 25)):
        with pytest.raises(ValueError, match=r"^clips: expected shape \(N, 3, T, 25, M\), got"):
            encoder(torch.zeros(shape))
    if "frames" in encoder.arguments:
        with pytest.raises(ValueError, match=rf"^clips: expected {frames} frames, got 40"):
            encoder(torch.zeros(2, 3, 40, 25, 2))
    elif "bodies" in encoder.arguments:
        with pytest.raises(ValueError, match="^clips: expected 2 bodies, got shape"):
            encoder(torch.zeros(2, 3, 13, 25, 1))


@every_encoder
def test_checkpointing_changes_nothing(name: str) -> None:
    plain = twins(name, "nw_ucla", 1)[0]
    frugal = copy.deepcopy(plain)
    frugal.checkpointing = True
    if name == "STGCN":  # masks of dropout come again, too
        for encoder in (plain, frugal):
            for block in encoder.st_gcn_networks:
                block.dropout = 0.5
    clips = clips_of(plain, 1)
    results = []
    for encoder in (plain, frugal):
        torch.manual_seed(3)
        results.append(run(encoder, clips))
    for key, expected in results[0].items():
        assert torch.equal(results[1][key], expected), key


@every_encoder
def test_checkpointing_keeps_less(name: str) -> None:
    if name == "HCN":
        pytest.skip("it has no blocks")
    kept = []
    for checkpointing in (False, True):
        encoder = twins(name, "nw_ucla", 1)[0]
        encoder.recomputing, encoder.checkpointing = False, checkpointing
        sizes: list[int] = []

        def pack(x: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(x.numel() if x.dim() == 4 else 0)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            encoder(clips_of(encoder, 1))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


class Copies(TorchDispatchMode):
    """Counts the copies of maps from one layout to another."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function._schema.name in ("aten::clone", "aten::copy_", "aten::contiguous", "aten::_to_copy"):
            source, target = (args[1], args[0]) if function._schema.name == "aten::copy_" else (args[0], result)
            if source.dim() == 4 and source.shape[2] > 1 and source.shape[3] > 1:
                formats = [x.is_contiguous(memory_format=torch.channels_last) for x in (source, target)]
                if not all(formats) and source.stride() != target.stride():
                    self.found.append(tuple(source.shape))
        return result


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("HCN", "SCDEncoder")])
def test_channels_last_from_end_to_end(name: str) -> None:
    """No map changes its layout between the clips and the features, nor on the way back."""
    encoder = twins(name, "ntu", 2)[0].to(memory_format=torch.channels_last)
    clips = clips_of(encoder, 2)
    encoder(clips).sum().backward()
    with Copies() as copies:
        x = encoder.features(clips)
        x.backward(torch.ones_like(x))
    assert copies.found == []
    assert encoder.feature_map(clips).is_contiguous(memory_format=torch.channels_last)


@every_encoder
def test_compiles_whole(name: str) -> None:
    """One graph, without a branch on data: what a CUDA graph needs, too."""
    encoder = twins(name, "nw_ucla", 1)[0]
    compiled = torch.compile(copy.deepcopy(encoder), fullgraph=True, backend="aot_eager")
    clips = clips_of(encoder, 1)
    ours, theirs = run(compiled, clips), run(encoder, clips)
    for key, expected in theirs.items():
        found = (
            ours[key.replace("gradient ", "gradient _orig_mod.").replace("buffer ", "buffer _orig_mod.")]
            if (key not in ("output", "gradient clips"))
            else ours[key]
        )
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@every_encoder
def test_autocast(name: str) -> None:
    encoder, theirs = twins(name, "ntu", 2)
    clips = clips_of(encoder, 2)
    truth = copy.deepcopy(theirs).double()(clips.double())
    with torch.autocast("cpu", torch.bfloat16):
        ours, low = encoder(clips), theirs(clips)
    ours.float().sum().backward()
    error, eager_error = ((y.double() - truth).norm() / truth.norm() for y in (ours, low))
    assert error <= 2 * eager_error + 0.01


@every_encoder
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_is_one_cuda_graph(name: str) -> None:
    """Forward and backward, captured once and replayed on other clips."""
    encoder, expected = (twins(name, "ntu", 2)[0].cuda() for _ in range(2))
    expected.load_state_dict(encoder.state_dict())
    clips = clips_of(encoder, 2).cuda()

    def step() -> None:
        for parameter in encoder.parameters():
            parameter.grad = None
        encoder(clips).square().sum().backward()

    graph, _ = captured(step)
    clips.copy_(torch.randn_like(clips))
    graph.replay()
    expected(clips).square().sum().backward()
    for (key, ours), theirs in zip(encoder.named_parameters(), expected.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), key
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("STGCN", {"width": 0}, "width: expected a positive integer, got 0"),
        ("STGCN", {"feature_dim": 2.5}, "feature_dim: expected a positive integer, got 2.5"),
        ("STGCN", {"dropout": 1.5}, "dropout: expected 0 to 1, got 1.5"),
        ("AGCN", {"width": 2}, "width: expected a multiple of 4, got 2"),
        ("AGCN", {"bodies": 0}, "bodies: expected a positive integer, got 0"),
        ("CTRGCN", {"width": 6}, "width: expected a multiple of 4, got 6"),
        ("CTRGCN", {"width": 0}, "width: expected a positive integer, got 0"),
        ("DSTA", {"width": 7}, "width: expected a multiple of 2, got 7"),
        ("DSTA", {"width": 2}, "width: expected at least 4, got 2"),
        ("DSTA", {"heads": 0}, "heads: expected a positive integer, got 0"),
        ("HCN", {"width": 1}, "width: expected at least 2, got 1"),
        ("HCN", {"in_channels": 0}, "in_channels: expected a positive integer, got 0"),
        ("Hyperformer", {"heads": 0}, "heads: expected a positive integer, got 0"),
        ("SCDEncoder", {"width": 2}, "width: expected a multiple of 4, got 2"),
        ("SCDEncoder", {"hidden_dim": 100, "heads": 8}, "heads: expected a divisor of hidden_dim=100, got 8"),
    ],
)
def test_sizes_out_of_range_are_refused(name: str, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        getattr(encoders, name)(**{**SMALL[name], **sizes})


@pytest.mark.parametrize(
    ("name", "width"), [("AGCN", 4), ("CTRGCN", 4), ("DSTA", 4), ("DSTA", 6), ("HCN", 2), ("HCN", 3), ("SCDEncoder", 4)]
)
def test_the_least_widths_run(name: str, width: int) -> None:
    encoder = getattr(encoders, name)(**{**SMALL[name], "width": width})
    assert encoder.features(clips_of(encoder, 2)).shape == (4, encoder.feature_dim)


def test_an_encoder_of_a_layout_of_ones_own_has_a_twin(tmp_path: Path) -> None:
    """Whatever the name of the layout: the tree is what counts, from a checkpoint, too."""
    for mine in (replace(NTU, name="mine"), replace(NTU, edges=((0, 20), *NTU.edges[1:]))):
        encoder = encoders.STGCN(mine, **SMALL["STGCN"])
        torch.save(encoder.arguments, tmp_path / "arguments")
        encoder.arguments = torch.load(tmp_path / "arguments", weights_only=True)
        twin = random_twin(encoder)
        assert twin.layout == mine
        assert torch.equal(twin.A, encoder.A)
    assert not torch.equal(encoder.A, encoders.STGCN("ntu", **SMALL["STGCN"]).A)
