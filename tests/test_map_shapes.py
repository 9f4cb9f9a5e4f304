"""Maps of unusual shapes, for every op that takes one: empty axes, axes of one element, very many samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_gpu import CASES, NAMES, step
from torch import Tensor

import skelops
from skelops import _backend, _triton
from skelops._op import REGISTRY

GPU = torch.cuda.is_available()
Call = tuple[Callable[..., Any], tuple[Any, ...]]


def _leaf(*shape: int) -> Tensor:
    return torch.randn(shape).requires_grad_()


def _hop_attention(x: Tensor) -> Call:
    (B, C, T, V), heads = x.shape, 1
    shapes = (B, C, T, 3), (heads, 4, C), (heads, C), (heads, V, V), (1,)
    indices = torch.arange(V * V).view(V, V) % 4, torch.arange(V) % 3
    qkv = x.detach().repeat(1, 3, 1, 1).requires_grad_()
    return partial(skelops.hop_attention, heads=heads), (qkv, *(_leaf(*shape) for shape in shapes), *indices)


def _multi_scale_conv(x: Tensor) -> Call:
    shapes = (2, 4, 4, 3), (2, 4), (4, x.shape[1]), (4,), (12,), (12,)
    narrow = _leaf(x.shape[0], 12, *x.shape[2:])
    function = partial(skelops.multi_scale_conv, dilations=(1, 2), stride=2, stats=True)
    return function, (narrow, x, *(_leaf(*shape) for shape in shapes))


#: Calls of the ops on a map of any shape.
MAPS: dict[str, Callable[[Tensor], Call]] = {
    "squeeze_pool": lambda x: (skelops.squeeze_pool, (x,)),
    "mask_pool": lambda x: (skelops.mask_pool, (x, _leaf(*x.shape[2:]))),
    "mask_pool_channels": lambda x: (skelops.mask_pool, (x, torch.randn_like(x).requires_grad_())),
    "channel_sums": lambda x: (skelops.channel_sums, (x,)),
    "norm_act": lambda x: (skelops.norm_act, (x, *(_leaf(x.shape[1]) for _ in range(2)), torch.randn_like(x))),
    "temporal_max_pool": lambda x: (
        partial(skelops.temporal_max_pool, stride=2, stats=True),
        (x, *(_leaf(x.shape[1]) for _ in range(2))),
    ),
    "temporal_conv": lambda x: (
        partial(skelops.temporal_conv, stride=2, stats=True),
        (x, _leaf(4, x.shape[1], 3), _leaf(4), *(_leaf(x.shape[1]) for _ in range(2))),
    ),
    "multi_scale_conv": _multi_scale_conv,
    "graph_conv": lambda x: (
        partial(skelops.graph_conv, stats=True),
        (x, _leaf(2, 4, x.shape[1]), _leaf(2, x.shape[3], x.shape[3]), _leaf(2, 4)),
    ),
    "graph_conv_per_sample": lambda x: (
        skelops.graph_conv,
        (x, _leaf(2, 4, x.shape[1]), _leaf(len(x), 2, x.shape[3], x.shape[3]), _leaf(4)),
    ),
    "aggregate": lambda x: (
        partial(skelops.aggregate, axes="kvw", sum_subsets=False),
        (x, _leaf(2, x.shape[3], x.shape[3])),
    ),
    "aggregate_per_channel": lambda x: (
        partial(skelops.aggregate, axes="bkcvw", sum_subsets=True),
        (x, _leaf(len(x), 2, x.shape[1], x.shape[3], x.shape[3])),
    ),
    "channel_graph_conv": lambda x: (
        partial(skelops.channel_graph_conv, stats=True),
        (
            x,
            *(_leaf(len(x), 1, 3, x.shape[3]) for _ in range(2)),
            *(_leaf(1, x.shape[1], *size) for size in ((3,), ())),
            _leaf(1),
            _leaf(1, x.shape[3], x.shape[3]),
        ),
    ),
    "joint_attention": lambda x: (
        partial(skelops.joint_attention, heads=1),
        (x, torch.randn_like(x).requires_grad_(), _leaf(1, x.shape[3], x.shape[3]), _leaf(1)),
    ),
    "hop_attention": _hop_attention,
}
FORMATS = [torch.contiguous_format, torch.channels_last]
every_map = pytest.mark.parametrize("case", MAPS)


def skip_without(backend: str, case: str) -> None:
    op = REGISTRY[NAMES.get(case, case)]
    if reason := _backend.unavailable(backend, op.package, op.name, "cpu", torch.float32):
        pytest.skip(reason)


def results(function: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and gradients of all leaves."""
    result = function(*inputs)
    outputs = [result] if isinstance(result, Tensor) else list(result)
    leaves = [x for x in inputs if x.requires_grad]
    return outputs, list(torch.autograd.grad(outputs, leaves, [torch.full_like(y, 0.5) for y in outputs]))


@every_map
@pytest.mark.parametrize("axis", [1, 2, 3], ids=["channels", "frames", "joints"])
def test_a_map_without_elements_is_refused(case: str, axis: int) -> None:
    shape = [2, 4, 5, 6]
    shape[axis] = 0
    function, inputs = MAPS[case](_leaf(*shape))
    with pytest.raises(ValueError, match=r"expected at least one channel, frame and joint, got shape \("):
        function(*inputs)


@pytest.mark.parametrize(
    ("function", "inputs", "message"),
    [
        (skelops.graph_conv, ((0, 4, 3), (0, 5, 5)), "weight: expected at least one element, got"),
        (skelops.graph_conv, ((2, 0, 3), (2, 5, 5)), "weight: expected at least one element, got"),
        (skelops.temporal_conv, ((0, 3, 9),), "weight: expected at least one element, got"),
        (
            partial(skelops.aggregate, axes="kvw", sum_subsets=False),
            ((0, 5, 5),),
            "adjacency: expected at least one subset, got",
        ),
    ],
)
def test_a_weight_without_elements_is_refused(
    function: Callable[..., Any], inputs: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        function(torch.randn(2, 3, 4, 5), *map(torch.randn, inputs))


@every_map
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.cpu
def test_no_samples_have_no_gradient(case: str, backend: str) -> None:
    skip_without(backend, case)
    function, inputs = MAPS[case](_leaf(0, 4, 5, 6))
    with skelops.backend(backend):
        _, gradients = results(function, inputs)
    leaves = [x for x in inputs if x.requires_grad]
    assert sum(g.numel() for g in gradients) == sum(x.numel() for x in leaves)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert torch.equal(gradient, torch.zeros_like(leaf))


@every_map
@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("axis", range(4), ids=["sample", "channel", "frame", "joint"])
@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.cpu
def test_strides_of_axes_of_one_element(case: str, backend: str, axis: int, memory_format: torch.memory_format) -> None:
    """torch does not mind what they are, nor must kernels."""
    skip_without(backend, case)
    shape = [2, 4, 5, 6]
    shape[axis] = 1
    function, inputs = MAPS[case](torch.randn(shape).contiguous(memory_format=memory_format).requires_grad_())

    def odd(x: Tensor) -> Tensor:
        strides = [3 if n == 1 else step for n, step in zip(x.shape, x.stride(), strict=True)]
        return x.detach().as_strided(x.shape, strides).requires_grad_(x.requires_grad)

    with skelops.backend(backend):
        expected = results(function, inputs)
        found = results(function, tuple(odd(x) for x in inputs))
    for parts, truths in zip(found, expected, strict=True):
        for part, truth in zip(parts, truths, strict=True):
            assert torch.equal(part, truth)


def _assert_launchable(launches: list[_triton.Launch]) -> None:
    assert launches
    for launch in launches:
        assert all(size <= 65535 for size in launch.grid[1:]), f"{launch.kernel.fn.__name__}: {launch.grid}"


@every_map
@pytest.mark.cpu
def test_any_number_of_samples_can_be_launched(case: str) -> None:
    """The second and third axis of a grid end at 65535."""
    pytest.importorskip("triton", reason="Triton is not installed")
    function, inputs = MAPS[case](torch.empty(70_000, 1, 16, 2).requires_grad_())
    with _triton.recording("sm_90") as launches, skelops.backend("triton"):
        results(function, inputs)
    _assert_launchable(launches)


@every_map
@pytest.mark.cpu
def test_launches_in_pieces(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without("triton", case)
    function, inputs = MAPS[case](_leaf(3, 4, 5, 6))
    with skelops.backend("triton"):
        expected = results(function, inputs)
        monkeypatch.setattr(_triton, "LONGEST", 2)
        found = results(function, inputs)
    for parts, truths in zip(found, expected, strict=True):
        for part, truth in zip(parts, truths, strict=True):
            assert torch.equal(part, truth)


@pytest.mark.parametrize("case", ["bank_contrast", "enqueue_", "info_nce", "nt_xent", "queue_attention"])
@pytest.mark.cpu
def test_any_number_of_rows_can_be_launched(case: str) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    inputs = CASES[case][1](70_000, torch.float32)
    with _triton.recording("sm_90") as launches, skelops.backend("triton"):
        step(case, inputs)
    _assert_launchable(launches)


def test_every_op_is_here() -> None:
    others = {"batch_norm_affine", "bank_contrast", "enqueue_", "info_nce", "linear", "nt_xent", "queue_attention"}
    ops = {name for name in REGISTRY if "_backward" not in name}
    assert ops - others == {NAMES.get(case, case) for case in MAPS}
