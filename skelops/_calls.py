"""Calls of the public ops at common shapes, for `skelops.tune`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

import skelops


def _maps(dtype: torch.dtype, *shapes: tuple[int, ...]) -> Iterator[Tensor]:
    """Feature maps of these shapes in both memory formats."""
    for shape in shapes:
        x = torch.randn(shape).to(dtype)
        yield x.clone().requires_grad_()
        yield x.contiguous(memory_format=torch.channels_last).requires_grad_()


def _squeeze_pool(dtype: torch.dtype) -> Iterator[partial]:
    for x in _maps(dtype, (256, 64, 50, 25), (256, 256, 16, 25), (128, 3, 300, 25)):
        yield partial(skelops.squeeze_pool, x)


def _mask_pool(dtype: torch.dtype) -> Iterator[partial]:
    for x in _maps(dtype, (256, 64, 50, 25), (256, 256, 16, 25)):
        yield partial(skelops.mask_pool, x, (torch.rand(x.shape[2:]) > 0.3).to(dtype))
        yield partial(skelops.mask_pool, x, torch.rand(x.shape).to(x).requires_grad_())


def _graph_conv(dtype: torch.dtype) -> Iterator[partial]:
    for x in _maps(dtype, (256, 64, 64, 25), (128, 128, 32, 25), (64, 256, 16, 25), (64, 64, 32, 50)):
        C, V = x.shape[1], x.shape[3]
        weight = (torch.randn(3, C, C) / C**0.5).to(dtype).requires_grad_()
        adjacency = (torch.rand(3, V, V) / V).to(dtype).requires_grad_()
        for stats in (False, True):
            yield partial(skelops.graph_conv, x, weight, adjacency, stats=stats)


def _hop_attention(dtype: torch.dtype) -> Iterator[partial]:
    hops, groups = torch.randint(0, 12, (25, 25)), torch.randint(0, 5, (25,))
    for qkv in _maps(dtype, (64, 648, 64, 25), (64, 648, 16, 25)):
        group_key = torch.randn_like(qkv[:, :216, :, :5]).requires_grad_()
        sizes = (9, 12, 24), (9, 24), (9, 25, 25), (1,)
        parameters = [torch.randn(size).to(dtype).requires_grad_() for size in sizes]
        inputs = qkv, group_key, *parameters, hops, groups
        yield partial(skelops.hop_attention, *inputs, heads=9)


def _joint_attention(dtype: torch.dtype) -> Iterator[partial]:
    forms: list[tuple[Literal["joints", "frames"], Literal["tanh", "softmax"]]]
    forms = [("joints", "tanh"), ("joints", "softmax"), ("frames", "tanh")]
    for axis, activation in forms:
        shapes = ((64, 64, 50, 25), (64, 256, 13, 25)) if axis == "joints" else ((64, 64, 64, 25), (64, 256, 13, 25))
        for source in _maps(dtype, *shapes):
            P = source.shape[3 if axis == "joints" else 2]
            static, alpha = (torch.randn(size).to(dtype).requires_grad_() for size in ((4, P, P), (4,)))
            inputs = source, torch.randn_like(source).requires_grad_(), static, alpha
            yield partial(skelops.joint_attention, *inputs, heads=4, axis=axis, activation=activation)


def _rows(dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys and queues (Q, D)."""
    for N, D, Q in ((256, 64, 65536), (256, 128, 65536), (256, 256, 65536), (256, 512, 16384)):
        query, key, queue = (normalize(torch.randn(rows, D), dim=1).to(dtype) for rows in (N, N, Q))
        yield query.requires_grad_(), key, queue


def _queue_attention(dtype: torch.dtype) -> Iterator[partial]:
    for query, _, queue in _rows(dtype):
        yield partial(skelops.queue_attention, query, queue, 5.0)


def _info_nce(dtype: torch.dtype) -> Iterator[partial]:
    for query, key, queue in _rows(dtype):
        # As MoCo stores it, and by rows.
        yield partial(skelops.info_nce, query, key, queue.t().contiguous())
        yield partial(skelops.info_nce, query, key, queue)


def _bank_contrast(dtype: torch.dtype) -> Iterator[partial]:
    for N, D, Q in ((64, 256, 40091), (64, 128, 16384)):
        # Similarities that no tile rounds: all of them choose the same slots.
        features, bank = torch.eye(N, D).to(dtype), normalize(torch.randn(Q, D), dim=1).bfloat16().to(dtype)
        labels, bank_labels = torch.arange(N) % 60, torch.arange(Q) % 60
        inputs = features.requires_grad_(), labels, bank, bank_labels, torch.ones(Q, dtype=torch.bool)
        yield partial(skelops.bank_contrast, *inputs, torch.tensor([1]))


def _ring_write(queue: Tensor, keys: Tensor, pointer: Tensor) -> Tensor:
    """Every call does the same, so that results can be compared."""
    skelops.enqueue_(queue.zero_(), keys, pointer.zero_())
    return queue


def _enqueue(dtype: torch.dtype) -> Iterator[partial]:
    keys = torch.randn(4096, 128).to(dtype)
    for shape in ((128, 8192), (8192, 128)):
        yield partial(_ring_write, torch.zeros(shape, dtype=dtype), keys, torch.zeros(1, dtype=torch.int64))


def _nt_xent(dtype: torch.dtype) -> Iterator[partial]:
    for S, N, P, D in ((4, 16, 25, 256), (4, 16, 13, 256), (2, 1, 128, 1024)):
        pairs = [(0, 1)] if S == 2 else [(0, 1), (0, 3), (2, 1), (2, 3)]
        yield partial(skelops.nt_xent, torch.randn(S, N, P, D).to(dtype).requires_grad_(), pairs)


def _norm_act(dtype: torch.dtype) -> Iterator[partial]:
    seed = torch.tensor([1])
    for x in _maps(dtype, (256, 64, 50, 25), (256, 256, 16, 25)):
        scale, shift = (torch.rand(x.shape[1]).requires_grad_() for _ in range(2))
        yield partial(skelops.norm_act, x, scale, shift, torch.randn_like(x).requires_grad_(), dropout=0.5, seed=seed)


def _channel_sums(dtype: torch.dtype) -> Iterator[partial]:
    for x in _maps(dtype, (256, 64, 50, 25), (256, 256, 16, 25)):
        yield partial(skelops.channel_sums, x)


def _batch_norm_affine(dtype: torch.dtype) -> Iterator[partial]:
    for C in (64, 256):
        total, square_sum = (i + torch.rand(C, dtype=torch.float64).requires_grad_() for i in (0, 1000))
        weight, bias = (torch.rand(C).to(dtype).requires_grad_() for _ in range(2))
        yield partial(skelops.batch_norm_affine, total, square_sum, 1000, weight, bias)


def _temporal_conv(dtype: torch.dtype) -> Iterator[partial]:
    shapes = ((256, 64, 64, 25), 9), ((128, 128, 32, 25), 9), ((256, 16, 64, 25), 5), ((64, 256, 16, 25), 1)
    for shape, k in shapes:
        C = shape[1]
        weight, bias = (torch.randn(size).to(dtype).requires_grad_() for size in ((C, C, k), (C,)))
        scale, shift = (torch.rand(C).requires_grad_() for _ in range(2))
        for x in _maps(dtype, shape):
            yield partial(skelops.temporal_conv, x, weight, bias)
            for stride in (1, 2):
                yield partial(skelops.temporal_conv, x, weight, bias, scale, shift, stride=stride, stats=True)


def _temporal_max_pool(dtype: torch.dtype) -> Iterator[partial]:
    for x in _maps(dtype, (128, 16, 64, 25), (128, 64, 16, 25)):
        scale, shift = (torch.rand(x.shape[1]).requires_grad_() for _ in range(2))
        for stride in (1, 2):
            yield partial(skelops.temporal_max_pool, x, scale, shift, stride=stride, stats=True)


def _aggregate(dtype: torch.dtype) -> Iterator[partial]:
    B, C, T, V = shape = (128, 64, 64, 25)
    for axes, sizes, per_subset in (
        ("kvw", (3, V, V), False),
        ("bkvw", (B, 3, V, V), True),
        ("bkcvw", (B, 3, C, V, V), True),
        ("bktvw", (B, 3, T, V, V), True),
        ("bkctvw", (B // 8, 3, C, T, V, V), True),
    ):
        adjacency = (torch.rand(sizes) / V).to(dtype).requires_grad_()
        for x in _maps(dtype, (sizes[0] if "b" in axes else B, 3 * C if per_subset else C, *shape[2:])):
            features = x.unflatten(1, (3, C)) if per_subset else x
            yield partial(skelops.aggregate, features, adjacency, axes=axes, sum_subsets=per_subset)


def _channel_graph_conv(dtype: torch.dtype) -> Iterator[partial]:
    for B, C, R, T in ((128, 64, 8, 64), (128, 256, 32, 16)):
        shapes = (B, 3, R, 25), (B, 3, R, 25), (3, C, R), (3, C), (1,), (3, 25, 25)
        others = [(torch.rand(other) / 5).to(dtype).requires_grad_() for other in shapes]
        for x in _maps(dtype, (B, 3 * C, T, 25)):
            yield partial(skelops.channel_graph_conv, x, *others, stats=True)


#: Calls of each op at common shapes.
CALLS: dict[str, Callable[[torch.dtype], Iterator[partial]]] = {
    "aggregate": _aggregate,
    "bank_contrast": _bank_contrast,
    "batch_norm_affine": _batch_norm_affine,
    "channel_graph_conv": _channel_graph_conv,
    "channel_sums": _channel_sums,
    "enqueue": _enqueue,
    "graph_conv": _graph_conv,
    "hop_attention": _hop_attention,
    "info_nce": _info_nce,
    "joint_attention": _joint_attention,
    "mask_pool": _mask_pool,
    "norm_act": _norm_act,
    "nt_xent": _nt_xent,
    "queue_attention": _queue_attention,
    "squeeze_pool": _squeeze_pool,
    "temporal_conv": _temporal_conv,
    "temporal_max_pool": _temporal_max_pool,
}
