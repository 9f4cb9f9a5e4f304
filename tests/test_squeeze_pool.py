"""squeeze_pool against eager PyTorch: forms, layouts, dtypes, gradients, and what the compiler sees of it."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import check_against_eager, run_with_gradients, small
from torch import Tensor

import skelops
from skelops.ops.squeeze_pool import reference

FORMATS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (4, 3, 5, 25),
    (2, 64, 50, 25),
    (6, 16, 13, 20),
    (2, 17, 33, 18),
    (1, 130, 20, 17),
    (2, 7, 1, 17),
    (1, 1, 3, 1),
    (2, 5, 9, 64),
    (1, 2, 4, 125),
    (0, 3, 4, 25),
]


def eager(x: Tensor, lengths: Tensor | None = None, bodies: int = 1) -> tuple[Tensor, ...]:
    return reference.squeeze_pool(x, lengths, bodies)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_matches_eager(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    # An offset makes rounding visible that cancels in zero-mean sums.
    x = (torch.randn(small(*shape)) + 3).to(dtype).contiguous(memory_format=memory_format)
    check_against_eager(skelops.squeeze_pool, eager, [x])


@pytest.mark.every_level
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_matches_eager_for_every_number_of_joints(memory_format: torch.memory_format, kernels: str) -> None:
    for V in range(1, 66, 1 if kernels == "cpu" else 16):
        x = torch.randn(2, 3, 6, V).contiguous(memory_format=memory_format)
        check_against_eager(skelops.squeeze_pool, eager, [x])


@pytest.mark.every_level
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_long_clips_keep_the_accuracy_of_a_pairwise_sum(memory_format: torch.memory_format) -> None:
    x = (torch.rand(1, 3, 3000, 25) + 1).contiguous(memory_format=memory_format)
    check_against_eager(skelops.squeeze_pool, eager, [x])


@pytest.mark.every_level
@pytest.mark.parametrize("T", [21, 1])
@pytest.mark.parametrize("bodies", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_lengths_and_bodies(T: int, bodies: int, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x = torch.randn(small(6, 20, T, 25)).to(dtype).contiguous(memory_format=memory_format)
    T = x.shape[2]
    for lengths in (None, torch.tensor([0, T, 1, 16, 17, 5]).clamp(max=T), torch.zeros(6, dtype=torch.int32)):
        check_against_eager(
            lambda a, n=lengths: skelops.squeeze_pool(a, n, bodies), lambda a, n=lengths: eager(a, n, bodies), [x]
        )


@pytest.mark.every_level
@pytest.mark.usefixtures("kernels")
def test_lengths_out_of_range_end_where_the_map_does() -> None:
    x = torch.randn(4, 3, 7, 25)
    lengths = torch.tensor([9, 700, 2**40, -1])
    check_against_eager(
        lambda a: skelops.squeeze_pool(a, lengths), lambda a: eager(a, lengths.clamp(min=0, max=7), 1), [x]
    )


@pytest.mark.parametrize("view", ["strided", "expanded"])
@pytest.mark.usefixtures("kernels")
def test_strides_of_lengths(view: str) -> None:
    lengths = torch.arange(1, 9).view(4, 2)[:, 0] if view == "strided" else torch.tensor(2).expand(4)
    assert not lengths.is_contiguous()
    x = torch.randn(4, 3, 7, 25)
    check_against_eager(lambda a: skelops.squeeze_pool(a, lengths), lambda a: eager(a, lengths, 1), [x])


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("kernels")
def test_frames_past_the_length_are_not_read(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 3, 8, 25).contiguous(memory_format=memory_format)
    lengths = torch.tensor([5, 0])
    clean = skelops.squeeze_pool(x, lengths)
    x[0, :, 5:], x[1] = math.nan, math.inf
    (frames, joints, mean), (gradient,) = run_with_gradients(lambda a: skelops.squeeze_pool(a, lengths), [x], [0])
    for result, expected in zip((frames, joints, mean), clean, strict=True):
        assert torch.equal(result, expected)
    assert not frames[0, :, 5:].any()
    assert not joints[1].any()
    assert not mean[1].any()
    assert not gradient[0, :, 5:].any()
    assert not gradient[1].any()
    assert gradient[0, :, :5].all()


@pytest.mark.every_level
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_nan_and_infinity_stay_where_they_belong(value: float, memory_format: torch.memory_format) -> None:
    for t, v in ((0, 0), (3, 24), (4, 16), (8, 24)):
        x = torch.randn(2, 5, 9, 25).contiguous(memory_format=memory_format)
        x[1, 2, t, v] = value
        for result, expected in zip(skelops.squeeze_pool(x), eager(x), strict=True):
            assert torch.equal(result.isfinite(), expected.isfinite())


def test_strided_maps() -> None:
    base = torch.randn(4, 6, 10, 25)
    for x in (
        base.permute(0, 3, 1, 2),
        base.transpose(2, 3),
        base[:, 1::2],
        base[:, :, ::3],
        base[..., 2:20],
        base[:1].expand(3, -1, -1, -1),
        base[:, :, :1].expand(-1, -1, 7, -1),
    ):
        check_against_eager(skelops.squeeze_pool, eager, [x])


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_each_output_alone_and_expanded_upstream_gradients(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 20, 7, 25).contiguous(memory_format=memory_format)
    for i in range(3):
        check_against_eager(lambda a, i=i: skelops.squeeze_pool(a)[i], lambda a, i=i: eager(a)[i], [x])
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    sum(y.sum() for y in skelops.squeeze_pool(leaf)).backward()
    sum(y.sum() for y in eager(other)).backward()
    torch.testing.assert_close(leaf.grad, other.grad)


def test_format_is_kept_in_the_gradient() -> None:
    x = torch.randn(2, 8, 5, 25).contiguous(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(skelops.squeeze_pool(x).mean.sum(), x)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert not gradient.is_contiguous()


def test_without_gradient() -> None:
    assert not any(y.requires_grad for y in skelops.squeeze_pool(torch.randn(2, 3, 4, 5)))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_results_are_bitwise_the_same_for_any_number_of_threads(memory_format: torch.memory_format) -> None:
    x = torch.randn(3, 70, 50, 25).contiguous(memory_format=memory_format)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            outputs, gradients = run_with_gradients(skelops.squeeze_pool, [x], [0])
            results.append([*outputs, *gradients])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_gradcheck() -> None:
    x = torch.randn(4, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(skelops.squeeze_pool, (x,))
    assert torch.autograd.gradcheck(lambda a: skelops.squeeze_pool(a, torch.tensor([5, 0, 2, 1]), 2), (x,))


def test_double_backward_is_refused() -> None:
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad((skelops.squeeze_pool(x).mean ** 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        gradient.sum().backward()


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_opcheck(memory_format: torch.memory_format) -> None:
    x = torch.randn(4, 3, 5, 25).contiguous(memory_format=memory_format).requires_grad_()
    for lengths in (None, torch.tensor([5, 0, 3, 1])):
        torch.library.opcheck(torch.ops.skelops.squeeze_pool.default, (x, lengths, 2))
    f, j, m = (y.detach() for y in skelops.squeeze_pool(x, None, 2))
    channels_last = memory_format == torch.channels_last
    torch.library.opcheck(torch.ops.skelops.squeeze_pool_backward.default, (f, j, m, None, 2, channels_last))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def step(x: Tensor) -> Tensor:
        frames, joints, mean = skelops.squeeze_pool(x * 2, bodies=2)
        return (frames.sum() + (joints**2).sum() + mean.sum()) / 2

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for B, T in ((4, 5), (6, 7)) if dynamic else ((4, 5),):
        x = torch.randn(B, 3, T, 25, requires_grad=True)
        results = [torch.autograd.grad(f(x), x)[0] for f in (compiled, step)]
        torch.testing.assert_close(compiled(x), step(x))
        torch.testing.assert_close(*results)


def test_oracles() -> None:
    x = torch.randn(3, 4, 5, 25)
    frames, joints, mean = skelops.squeeze_pool(x)
    torch.testing.assert_close(frames.mean(2), mean)
    torch.testing.assert_close(joints.mean(2), mean)
    for y in skelops.squeeze_pool(torch.full((2, 3, 17, 25), 1.5)):
        assert torch.equal(y, torch.full_like(y, 1.5))


def test_bad_input() -> None:
    x = torch.randn(4, 3, 5, 25)
    with pytest.raises(TypeError, match="x: expected a tensor, got list"):
        skelops.squeeze_pool([1.0])
    with pytest.raises(TypeError, match="x: expected a float tensor, got torch.int64"):
        skelops.squeeze_pool(torch.zeros(4, 3, 5, 25, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x: expected shape \(B, C, T, V\), got \(3, 5, 25\)"):
        skelops.squeeze_pool(x[0])
    with pytest.raises(ValueError, match="x: expected at least one channel, frame and joint"):
        skelops.squeeze_pool(x[:, :, :0])
    with pytest.raises(TypeError, match="lengths: expected a integer tensor, got torch.float32"):
        skelops.squeeze_pool(x, torch.ones(4))
    with pytest.raises(ValueError, match=r"lengths: expected shape \(B\) with B=4, got \(3,\)"):
        skelops.squeeze_pool(x, torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="bodies: expected a divisor of B=4, got 3"):
        skelops.squeeze_pool(x, bodies=3)
    for bodies in (0, 1.0, True):
        with pytest.raises(ValueError, match=f"bodies: expected a positive integer, got {bodies}"):
            skelops.squeeze_pool(x, bodies=bodies)
