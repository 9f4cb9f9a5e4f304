"""hop_attention against its definition in eager PyTorch, and against Hyperformer's form of it."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import check_against_eager
from torch import Tensor

import skelops
from skelops.ops.hop_attention import _exceeds_shared_memory, reference

# B, H, d, T, V, G, n_hops
SHAPES = [
    (2, 3, 24, 2, 25, 5, 11),
    (3, 2, 16, 1, 20, 5, 7),
    (1, 2, 7, 3, 17, 4, 3),
    (2, 1, 9, 2, 1, 1, 1),
    (1, 1, 33, 1, 18, 3, 20),
    (0, 2, 8, 3, 25, 5, 7),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FLOATS = range(6)


def make(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> list[Any]:
    """Six tensors of floats, two of indices."""
    B, H, d, T, V, G, n_hops = shape
    sizes = (B, 3 * H * d, T, V), (B, H * d, T, G)
    maps = [torch.randn(size).contiguous(memory_format=memory_format) for size in sizes]
    parameters = [torch.randn(size) for size in ((H, n_hops, d), (H, d), (H, V, V), (1,))]
    indices = torch.randint(0, n_hops, (V, V)), torch.randint(0, G, (V,))
    return [*(x.to(dtype) for x in (*maps, *parameters)), *indices]


def call(*inputs: Tensor) -> Tensor:
    return skelops.hop_attention(*inputs, heads=len(inputs[2]))


def eager(*inputs: Tensor) -> Tensor:
    heads, _, d = inputs[2].shape
    return reference.hop_attention(*inputs, heads, d**-0.5)


def released(
    qkv: Tensor, group_key: Tensor, hop_key: Tensor, group_bias: Tensor, static: Tensor, alpha: Tensor, hops: Tensor,
    groups: Tensor,
) -> Tensor:  # fmt: skip
    """Hyperformer's order: rows of the attention are targets."""
    (B, C, T, _), (H, V, _) = group_key.shape, static.shape
    maps = *qkv.chunk(3, 1), group_key[..., groups]
    q, k, x, e = (m.reshape(B, H, C // H, T, V).permute(0, 3, 1, 4, 2) for m in maps)
    by_hop = torch.einsum("bthnc,hnmc->bthnm", q, hop_key[:, hops.mT])
    by_group = q @ e.mT + torch.einsum("hc,bthmc->bthm", group_bias, e)[..., None, :]
    softmax = ((q @ k.mT + by_hop + by_group) * (C // H) ** -0.5).softmax(-1)
    return ((alpha * softmax + static.mT) @ x).transpose(3, 4).reshape(B, T, C, V).transpose(1, 2)


@pytest.mark.every_level
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_matches_eager(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    inputs = make(shape, dtype, memory_format)
    check_against_eager(call, eager, inputs, differentiable=FLOATS)
    if not shape[0]:
        return
    leaves = [x.requires_grad_() for x in inputs[:2]]
    y = call(*inputs)
    assert y.is_contiguous(memory_format=memory_format)
    for grad in torch.autograd.grad(y, leaves, torch.ones_like(y)):
        assert grad.is_contiguous(memory_format=memory_format)


def test_is_the_released_form() -> None:
    inputs = make(SHAPES[0])
    torch.testing.assert_close(call(*inputs), released(*inputs), atol=1e-4, rtol=1e-4)
    inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    torch.testing.assert_close(call(*inputs), released(*inputs))


@pytest.mark.every_level
@pytest.mark.parametrize(("B", "heads"), [(1, 2), (5, 2), (5, 9)])
def test_more_frames_than_lanes(B: int, heads: int) -> None:
    """Enough of them that the CPU's kernel takes heads together, two or three here."""
    for memory_format in FORMATS:
        inputs = make((B, heads, 24, 21, 25, 5, 8), memory_format=memory_format)
        check_against_eager(call, eager, inputs, differentiable=FLOATS)


@pytest.mark.parametrize("wanted", [*((i,) for i in FLOATS), (0, 5), (1, 2)], ids=str)
def test_subsets_of_gradients(wanted: tuple[int, ...]) -> None:
    for frames in (5, 67):
        check_against_eager(call, eager, make((2, 2, 8, frames, 25, 5, 7)), differentiable=wanted)


@pytest.mark.every_level
@pytest.mark.parametrize("view", ["pitched", "contiguous slice", "permuted", "expanded"])
@pytest.mark.usefixtures("kernels")
def test_strides(view: str) -> None:
    inputs = make((2, 2, 12, 2, 25, 3, 5))
    qkv, wider = inputs[0], torch.cat([inputs[0], inputs[0] + 1], 1)
    inputs[0] = {
        "pitched": lambda: wider.contiguous(memory_format=torch.channels_last)[:, 72:],
        "contiguous slice": lambda: wider.contiguous()[:, 72:],
        "permuted": lambda: qkv.mT.contiguous().mT,
        "expanded": lambda: qkv[:1, :, :1].expand_as(qkv),
    }[view]()
    inputs[1] = inputs[1].contiguous() if view == "pitched" else inputs[1]
    inputs[2] = inputs[2].transpose(1, 2).contiguous().transpose(1, 2)
    inputs[6] = inputs[6].mT
    leaves = [x.requires_grad_() for x in (x.detach() for x in inputs[:6])]
    ours, theirs = (function(*leaves, *inputs[6:]) for function in (call, eager))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    # sum: an upstream gradient of stride 0
    gradients = (torch.autograd.grad(y.sum(), leaves) for y in (ours, theirs))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_large_scores() -> None:
    """The softmax neither overflows nor loses its gradient."""
    inputs = make(SHAPES[0])
    inputs[0][:, :72] *= 50
    check_against_eager(call, eager, inputs, differentiable=FLOATS, factor=3)


def test_gradcheck() -> None:
    *floats, hops, groups = make((2, 2, 3, 2, 5, 2, 3))
    leaves = [x.double().requires_grad_() for x in floats]
    assert torch.autograd.gradcheck(lambda *args: call(*args, hops, groups), leaves)


def test_opcheck() -> None:
    for memory_format in FORMATS:
        inputs = make((2, 2, 8, 3, 25, 5, 7), memory_format=memory_format)
        arguments = (*(x.requires_grad_() for x in inputs[:6]), *inputs[6:], 2, 0.3)
        torch.library.opcheck(torch.ops.skelops.hop_attention.default, arguments)


def test_compiles_whole() -> None:
    compiled = torch.compile(call, fullgraph=True, dynamic=True)
    for B in (2, 5):
        inputs = make((B, 2, 8, 6, 25, 5, 7))
        leaves = [x.requires_grad_() for x in inputs[:6]]
        y, expected = compiled(*inputs), call(*inputs)
        torch.testing.assert_close(y, expected)
        gradients = (torch.autograd.grad(z.square().sum(), leaves) for z in (y, expected))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_autocast() -> None:
    inputs = make((2, 2, 8, 6, 25, 5, 7))
    with torch.autocast(torch.get_default_device().type, torch.bfloat16):
        leaves = [x.requires_grad_() for x in inputs[:6]]
        y = call(*inputs)
    assert y.dtype == torch.bfloat16
    gradients = torch.autograd.grad(y.float().square().sum(), leaves)
    assert all(grad.dtype == torch.float32 for grad in gradients)
    rounded = [x.detach().bfloat16().float() if i < 4 else x.detach() for i, x in enumerate(inputs[:6])]
    torch.testing.assert_close(y.float(), call(*rounded, *inputs[6:]), atol=2e-2, rtol=2e-2)


def test_repeats_bit_for_bit() -> None:
    inputs = make((6, 3, 24, 32, 25, 5, 11))
    leaves = [x.requires_grad_() for x in inputs[:6]]
    first, second = ([y := call(*inputs), *torch.autograd.grad(y.square().sum(), leaves)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_double_backward_is_refused() -> None:
    inputs = make((1, 2, 8, 2, 5, 2, 3))
    qkv = inputs[0].requires_grad_()
    (grad,) = torch.autograd.grad(call(*inputs).square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_bad_input() -> None:
    inputs = make((2, 2, 8, 3, 25, 5, 7))

    def changed(index: int, value: Any, **options: Any) -> Tensor:
        arguments = [*inputs[:index], value, *inputs[index + 1 :]]
        return skelops.hop_attention(*arguments, **{"heads": 2, **options})

    cases = [
        (0, inputs[0][0], {}, ValueError, r"qkv: expected shape \(B, 3C, T, V\) with .*, got \(48, 3, 25\)"),
        (0, inputs[0], {"heads": 3}, ValueError, r"heads: expected a divisor of C=16, got 3"),
        (0, inputs[0], {"heads": 2.0}, ValueError, r"heads: expected a divisor of C=16, got 2.0"),
        (0, inputs[0], {"scale": -1.0}, ValueError, r"scale: expected a finite number above zero, got -1.0"),
        (0, inputs[0][:, :16], {}, ValueError, r"qkv: expected shape .*3C=48.* got \(2, 16, 3, 25\)"),
        (1, inputs[1][:, :, :2], {}, ValueError, r"qkv: expected shape .*T=2.*"),
        (2, inputs[2][:, :, :4], {}, ValueError, r"hop_key: expected shape \(H, n_hops, d\) with .*d=8.*"),
        (4, inputs[4][:1], {}, ValueError, r"static: expected shape \(H, V, V\) with .*H=2.*"),
        (5, torch.ones(2), {}, ValueError, r"alpha: expected shape"),
        (6, inputs[6].float(), {}, TypeError, r"hops: expected torch.int64, got torch.float32"),
        (6, inputs[6].int(), {}, TypeError, r"hops: expected torch.int64, got torch.int32"),
        (3, inputs[3].double(), {}, TypeError, r"group_bias: expected torch.float32 as qkv, got torch.float64"),
        (7, inputs[7].to("meta"), {}, ValueError, r"groups: expected device .* as qkv, got meta"),
    ]
    for index, value, options, error, message in cases:
        with pytest.raises(error, match=message):
            changed(index, value, **options)


@pytest.mark.cpu
def test_indices_out_of_range() -> None:
    inputs = make((2, 2, 8, 3, 25, 5, 7))
    for (index, name, last), value in product([(6, "hops", 6), (7, "groups", 4)], [-1, 20]):
        wrong = inputs[index].clone()
        wrong.view(-1)[3] = value
        with pytest.raises(ValueError, match=rf"{name}: expected values in 0..{last}, got {value}"):
            call(*inputs[:index], wrong, *inputs[index + 1 :])


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("V", "D", "limit", "expected"), [(25, 27, 99, False), (25, 256, 99, True), (128, 128, 227, True)]
)
def test_heads_too_wide_for_a_gpu(V: int, D: int, limit: int, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch serves float32 tiles that the shared memory of a block (in KB) does not hold."""
    device = SimpleNamespace(shared_memory_per_block_optin=1024 * limit, shared_memory_per_block=48 * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    for kind, dtype in (("cuda", torch.float32), ("cuda", torch.bfloat16), ("cpu", torch.float32)):
        qkv = SimpleNamespace(device=torch.device(kind), dtype=dtype, shape=(2, 6 * D, 4, V))
        found = _exceeds_shared_memory(qkv, None, SimpleNamespace(shape=(2, 7, D)))
        assert found == (expected and kind == "cuda" and dtype == torch.float32)
