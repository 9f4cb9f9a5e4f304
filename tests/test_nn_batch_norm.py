"""BatchNormAct2d against torch.nn.BatchNorm2d, dropout, add and activation in eager PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

import skelops
from skelops._stats import MapStats
from skelops.nn import BatchNormAct2d, STGCNBlock
from skelops.nn.batch_norm import alike, uses_batch_statistics
from skelops.nn.scaled import normalised
from skelops.ops.norm_act import reference

MODULES: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
    {"eps": 1e-3, "momentum": 0.7},
]
C = 14


def pair(dtype: torch.dtype = torch.float32, **kwargs: Any) -> tuple[nn.BatchNorm2d, BatchNormAct2d]:
    """Both modules with the same random parameters and buffers."""
    options = {key: kwargs.pop(key) for key in ("negative_slope", "dropout") if key in kwargs}
    plain, ours = nn.BatchNorm2d(C, **kwargs), BatchNormAct2d(C, **kwargs, **options)
    for part in plain.parameters():
        nn.init.normal_(part)
    if plain.running_mean is not None:
        nn.init.normal_(plain.running_mean)
        nn.init.uniform_(plain.running_var, 0.5, 2)
    ours.load_state_dict(plain.state_dict())
    return plain.to(dtype), ours.to(dtype)


def eager(bn: nn.BatchNorm2d, x: Tensor, residual: Tensor, slope: float, rate: float, seed: Tensor | None) -> Tensor:
    y = bn(x)
    if seed is not None:
        y = y * reference.kept(x.shape, rate, seed) / (1 - rate)
    return F.leaky_relu(y + residual, slope)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kwargs", MODULES, ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("with_stats", [False, True])
def test_matches_eager(dtype: torch.dtype, kwargs: dict[str, Any], rate: float, with_stats: bool) -> None:
    """Three steps of training and one of evaluation: outputs, gradients and buffers."""
    # A slope of one half: rounding at the kink moves a gradient by less than with ReLU.
    plain, ours = pair(dtype, **kwargs, negative_slope=0.5, dropout=rate)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for training in (True, True, True, False):
        plain.train(training)
        ours.train(training)
        x, residual = (torch.randn(4, C, 5, 17, dtype=dtype) * 2 + 1 for _ in range(2))
        if ours.training and rate:
            state = torch.get_rng_state()
            seed = torch.randint(2**63 - 1, (1,))
            torch.set_rng_state(state)
        else:
            seed = None
        results = []
        for module in (plain, ours):
            leaves = [x.detach().requires_grad_(), residual.detach().requires_grad_(), *module.parameters()]
            if module is plain:
                y = eager(plain, leaves[0], leaves[1], 0.5, rate, seed)
            elif with_stats:
                y = ours(MapStats(leaves[0], *skelops.channel_sums(leaves[0])), leaves[1])
            else:
                y = ours(leaves[0], leaves[1])
            upstream = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
            results.append([y, *torch.autograd.grad(y, leaves, upstream), *module.buffers()])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(b, a, **tolerance)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_relu_and_no_residual(memory_format: torch.memory_format) -> None:
    plain, ours = pair()
    x = torch.randn(4, C, 5, 17).contiguous(memory_format=memory_format)
    y = ours(x)
    torch.testing.assert_close(y, F.relu(plain(x)))
    assert y.is_contiguous(memory_format=memory_format)


def test_sums_of_a_graph_conv_carry_the_gradient() -> None:
    plain, ours = pair()
    inputs = [torch.randn(4, 6, 5, 17), torch.randn(3, C, 6) / 3, torch.rand(3, 17, 17) / 17]
    results = []
    for fused in (False, True):
        leaves = [x.detach().requires_grad_() for x in inputs]
        if fused:
            y, total, square_sum = skelops.graph_conv(*leaves, stats=True)
            y = ours(MapStats(y, total.double(), square_sum.double()))
        else:
            y = F.relu(plain(skelops.graph_conv(*leaves)))
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "second", [{}, {"momentum": 0.4}, {"eps": 1e-2}, {"affine": False}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize("first", [{}, {"momentum": None}, {"affine": False}], ids=str)
@pytest.mark.parametrize("with_stats", [False, True])
def test_norms_side_by_side(first: dict[str, Any], second: dict[str, Any], with_stats: bool) -> None:
    """One call for several BatchNorms where these agree, one each where they do not."""
    kinds: list[tuple[int, dict[str, Any]]] = [(3, first), (5, first | second), (1, first)]
    plain = [nn.BatchNorm2d(channels, **kwargs) for channels, kwargs in kinds]
    for norm in plain:
        for part in norm.parameters():
            nn.init.normal_(part)
    ours = copy.deepcopy(plain)
    assert alike(ours) == (first | second == first and "momentum" not in first)
    for training in (True, True, False):
        results = []
        x = torch.randn(4, 9, 5, 7)
        for norms in (plain, ours):
            leaf = x.clone().requires_grad_()
            for norm in norms:
                norm.train(training)
            if norms is plain:
                y = torch.cat([norm(part) for norm, part in zip(norms, leaf.split([3, 5, 1], 1), strict=True)], 1)
            else:
                sums = MapStats(leaf, leaf.double().sum((0, 2, 3)), leaf.double().square().sum((0, 2, 3)))
                scaled = normalised(sums if with_stats and training else leaf, *norms)
                y = scaled.map * scaled.scale[:, None, None] + scaled.shift[:, None, None]
            leaves = [leaf, *(part for norm in norms for part in norm.parameters())]
            results.append(
                [y, *torch.autograd.grad(y.square().sum(), leaves), *(b for norm in norms for b in norm.buffers())]
            )
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_uses_batch_statistics() -> None:
    module = BatchNormAct2d(3)
    assert uses_batch_statistics(module)
    assert not uses_batch_statistics(module.eval())
    assert uses_batch_statistics(BatchNormAct2d(3, track_running_stats=False).eval())


def test_bfloat16_maps_and_modules() -> None:
    plain, ours = pair()
    x = torch.randn(4, C, 5, 17)
    expected = F.relu(plain(x))
    for module in (ours, copy.deepcopy(ours).bfloat16()):
        for training in (True, False):
            y = module.train(training)(x.bfloat16())
            assert y.dtype == torch.bfloat16
            if training:
                torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=4e-2)


def test_dropout_follows_the_generator() -> None:
    module, x = BatchNormAct2d(C, dropout=0.5), torch.randn(4, C, 5, 17)
    torch.manual_seed(3)
    first, second = module(x), module(x)
    torch.manual_seed(3)
    assert torch.equal(module(x), first)
    assert not torch.equal(first, second)
    module.eval()
    assert torch.equal(module(x), module(x))
    checkpointed = torch.utils.checkpoint.checkpoint
    leaf = x.clone().requires_grad_()
    module.train()
    gradients = []
    for run in (module, lambda a: checkpointed(module, a, use_reentrant=False)):
        torch.manual_seed(5)
        gradients.append(torch.autograd.grad(run(leaf).sum(), leaf)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_compiles_in_one_graph(momentum: float | None) -> None:
    _, ours = pair(momentum=momentum, dropout=0.0)
    twin = copy.deepcopy(ours)
    compiled: Callable[..., Tensor] = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
    for B in (4, 6):
        x = torch.randn(B, C, 5, 17, requires_grad=True)
        outputs = compiled(x, x * 2), twin(x, x * 2)
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in outputs))
        for a, b in zip(ours.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(a, b)
    dropping = BatchNormAct2d(C, dropout=0.5)
    y = torch.compile(dropping, fullgraph=True, backend="aot_eager")(torch.randn(4, C, 5, 17))
    assert 0.5 < (y == 0).double().mean() < 1


def test_copies_and_text() -> None:
    module = BatchNormAct2d(3, negative_slope=0.1, dropout=0.2)
    assert "negative_slope=0.1, dropout=0.2" in repr(copy.deepcopy(module))
    assert module.state_dict().keys() == nn.BatchNorm2d(3).state_dict().keys()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="negative_slope: expected a number of at least 0, got -1"):
        BatchNormAct2d(3, negative_slope=-1)
    with pytest.raises(ValueError, match="dropout: expected a probability below 1, got 1"):
        BatchNormAct2d(3, dropout=1)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, C=3, T, V\), got \(2, 4, 5, 6\)"):
        BatchNormAct2d(3)(torch.zeros(2, 4, 5, 6))
    with pytest.raises(ValueError, match="expected more than 1 value per channel"):
        BatchNormAct2d(3)(torch.zeros(1, 3, 1, 1))


@contextmanager
def one_of_two(rank: int, folder: str) -> Iterator[None]:
    """A process group of two, which neither leaves before the other is done."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        yield
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def synchronised(rank: int, folder: str, compiled: bool) -> None:
    """One of two processes; the second has fewer samples. Its results are those of one process with all samples."""
    torch.manual_seed(0)
    with one_of_two(rank, folder):
        for momentum in (0.1, None):
            plain, ours = pair(torch.float64, momentum=momentum, negative_slope=0.5)
            ours.process_group = distributed.group.WORLD
            run = torch.compile(ours, fullgraph=True, backend="aot_eager") if compiled else ours
            whole = torch.randn(5, C, 4, 6, dtype=torch.float64) * 2 + 3
            upstream = torch.randn_like(whole)
            share = slice(0, 3) if rank == 0 else slice(3, 5)
            x, all_x = whole[share].clone().requires_grad_(), whole.clone().requires_grad_()
            y, expected = run(x), F.leaky_relu(plain(all_x), 0.5)
            gradients = torch.autograd.grad(y, [x, *ours.parameters()], upstream[share])
            truth = torch.autograd.grad(expected, [all_x, *plain.parameters()], upstream)
            torch.testing.assert_close(y, expected[share])
            torch.testing.assert_close(gradients[0], truth[0][share])
            for mine, right in zip(gradients[1:], truth[1:], strict=True):
                total = mine.clone()
                distributed.all_reduce(total)
                torch.testing.assert_close(total, right)
            for mine, right in zip(ours.buffers(), plain.buffers(), strict=True):
                torch.testing.assert_close(mine, right)
            torch.testing.assert_close(ours.eval()(x), F.leaky_relu(plain.eval()(x), 0.5))


def converted(rank: int, folder: str) -> None:
    """One of two processes: a block after SyncBatchNorm.convert_sync_batchnorm gives what one process gives."""
    torch.manual_seed(0)
    with one_of_two(rank, folder):
        alone = STGCNBlock(6, 8, subsets=2, kernel_size=3, stride=2).double()
        block = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(alone))
        assert sum(isinstance(module, nn.SyncBatchNorm) for module in block.modules()) == 3
        whole, adjacency = torch.randn(5, 6, 4, 7).double(), torch.rand(2, 7, 7).double()
        share = slice(0, 3) if rank == 0 else slice(3, 5)
        torch.testing.assert_close(block(whole[share], adjacency), alone(whole, adjacency)[share])
        for mine, right in zip(block.buffers(), alone.buffers(), strict=True):
            torch.testing.assert_close(mine, right)
        torch.testing.assert_close(block.eval()(whole, adjacency), alone.eval()(whole, adjacency))


@pytest.mark.cpu
def test_blocks_convert_to_sync_batch_norm(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(converted, args=(str(tmp_path),), nprocs=2)


@pytest.mark.cpu
@pytest.mark.parametrize("compiled", [False, True])
def test_statistics_of_two_processes(compiled: bool, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(synchronised, args=(str(tmp_path), compiled), nprocs=2)
