"""Checkpoints of released code load: names and shapes of every entry, written down from that code, for NTU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from skelops.methods import encoders
from torch import Tensor

from skelops.graphs import LAYOUTS, hops, part_of_joint

Entry = tuple[str, tuple[int, ...]]


def conv(name: str, outputs: int, inputs: int, *kernel: int, bias: bool = True) -> Iterator[Entry]:
    yield f"{name}.weight", (outputs, inputs, *(kernel or (1, 1)))
    if bias:
        yield f"{name}.bias", (outputs,)


def linear(name: str, outputs: int, inputs: int) -> Iterator[Entry]:
    yield from ((f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,)))


def bn(name: str, channels: int) -> Iterator[Entry]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def conv_bn(name: str, outputs: int, inputs: int, *kernel: int, names: str = "01") -> Iterator[Entry]:
    first, second = names.split(".") if "." in names else names
    yield from conv(f"{name}.{first}", outputs, inputs, *kernel)
    yield from bn(f"{name}.{second}", outputs)


TEN = list(zip([3, *[64] * 4, *[128] * 3, *[256] * 2], [*[64] * 4, *[128] * 3, *[256] * 3], strict=True))


def st_gcn() -> Iterator[Entry]:
    yield "A", (3, 25, 25)
    yield from bn("data_bn", 75)
    for i, (C, O) in enumerate(itertools.pairwise([3, *[16] * 4, *[32] * 3, *[64] * 2, 256])):
        block = f"st_gcn_networks.{i}"
        yield from conv(f"{block}.gcn.conv", 3 * O, C)
        yield from bn(f"{block}.tcn.0", O)
        yield from conv(f"{block}.tcn.2", O, O, 9, 1)
        yield from bn(f"{block}.tcn.3", O)
        if i and C != O:
            yield from conv_bn(f"{block}.residual", O, C)
        yield f"edge_importance.{i}", (3, 25, 25)
    yield from linear("fc", 128, 256)


def agcn() -> Iterator[Entry]:
    yield from bn("data_bn", 150)
    for i, (C, O) in enumerate(TEN, 1):
        yield f"l{i}.gcn1.PA", (3, 25, 25)
        for k in range(3):
            yield from conv(f"l{i}.gcn1.conv_a.{k}", O // 4, C)
            yield from conv(f"l{i}.gcn1.conv_b.{k}", O // 4, C)
            yield from conv(f"l{i}.gcn1.conv_d.{k}", O, C)
        yield from bn(f"l{i}.gcn1.bn", O)
        if C != O:
            yield from conv_bn(f"l{i}.gcn1.down", O, C)
        yield from conv_bn(f"l{i}.tcn1", O, O, 9, 1, names="conv.bn")
        if i > 1 and C != O:
            yield from conv_bn(f"l{i}.residual", O, C, names="conv.bn")
    yield from linear("fc", 60, 256)


def multi_scale(name: str, channels: int) -> Iterator[Entry]:
    width = channels // 4
    for branch in range(4):
        yield from conv_bn(f"{name}.branches.{branch}", width, channels)
    for branch in range(2):
        yield from conv_bn(f"{name}.branches.{branch}.3", width, width, 5, 1, names="conv.bn")
    yield from bn(f"{name}.branches.2.4", width)


def ctr_unit(name: str, C: int, O: int, residual: bool) -> Iterator[Entry]:
    R = 8 if C == 3 else C // 8
    yield from ((f"{name}.gcn1.PA", (3, 25, 25)), (f"{name}.gcn1.alpha", (1,)))
    for k in range(3):
        yield from conv(f"{name}.gcn1.convs.{k}.conv1", R, C)
        yield from conv(f"{name}.gcn1.convs.{k}.conv2", R, C)
        yield from conv(f"{name}.gcn1.convs.{k}.conv3", O, C)
        yield from conv(f"{name}.gcn1.convs.{k}.conv4", O, R)
    yield from bn(f"{name}.gcn1.bn", O)
    if C != O:
        yield from conv_bn(f"{name}.gcn1.down", O, C)
    yield from multi_scale(f"{name}.tcn1", O)
    if residual and C != O:
        yield from conv_bn(f"{name}.residual", O, C, names="conv.bn")


def ctr_gcn() -> Iterator[Entry]:
    yield from bn("data_bn", 150)
    for i, (C, O) in enumerate(TEN, 1):
        yield from ctr_unit(f"l{i}", C, O, residual=i > 1)
    yield from linear("fc", 60, 256)


def hyperformer() -> Iterator[Entry]:
    yield from bn("data_bn", 150)
    for i in range(1, 11):
        C, attention = 216 if i > 1 else 3, f"l{i}.vit1.attn"
        yield from ((f"l{i}.vit1.norm1.weight", (C,)), (f"l{i}.vit1.norm1.bias", (C,)))
        yield from ((f"{attention}.rpe", (12, 216)), (f"{attention}.w1", (9, 24)))
        yield from ((f"{attention}.outer", (9, 25, 25)), (f"{attention}.alpha", (1,)))
        yield from conv(f"{attention}.kv", 432, C, bias=False)
        yield from conv(f"{attention}.q", 216, C, bias=False)
        yield from conv(f"{attention}.proj", 216, 36)
        yield from conv(f"l{i}.vit1.pe_proj", 216, C, bias=False)
        if C != 216:
            yield from conv(f"l{i}.vit1.skip_proj", 216, C, bias=False)
        if i in (1, 5, 8):
            yield from conv_bn(f"l{i}.residual", 216, C, names="conv.bn")
        yield from multi_scale(f"l{i}.tcn1", 216)
    yield from linear("fc", 60, 216)


def dsta() -> Iterator[Entry]:
    yield from conv_bn("input_map", 64, 3)
    frames = 50
    for i, (C, O, inner, stride) in enumerate(
        [(64, 64, 16, 1)] * 2 + [(64, 128, 32, 2), (128, 128, 32, 1), (128, 256, 64, 2)] + [(256, 256, 64, 1)] * 3
    ):
        block = f"graph_layers.{i}"
        yield from ((f"{block}.atts", (1, 4, 25, 25)), (f"{block}.pes.pe", (1, C, frames, 25)))
        yield from ((f"{block}.alphas", (1, 4, 1, 1)), (f"{block}.attention0s", (1, 4, 25, 25)))
        yield from conv(f"{block}.in_nets", 8 * inner, C)
        yield from conv_bn(f"{block}.out_nets", O, 4 * C)
        yield from conv_bn(f"{block}.ff_nets", O, O)
        yield from conv_bn(f"{block}.out_nett", O, O, 7, 1)
        if C != O:
            yield from conv_bn(f"{block}.downs1", O, C)
            yield from conv_bn(f"{block}.downs2", O, C)
            yield from conv_bn(f"{block}.downt2", O, O)
        frames = -(-frames // stride)
    yield from linear("fc", 60, 256)


def hcn() -> Iterator[Entry]:
    for m in ("", "m"):
        yield from conv(f"conv1{m}.0", 64, 3)
        yield from conv(f"conv2{m}", 64, 64, 3, 1)
        yield from conv(f"conv3{m}.0", 32, 25, 3, 3)
        yield from conv(f"conv4{m}.0", 64, 32, 3, 3)
    yield from conv("conv5.0", 128, 128, 3, 3)
    yield from conv("conv6.0", 256, 128, 3, 3)
    yield from linear("fc7.0", 512, 4096)
    yield from linear("fc8", 60, 512)


def scd() -> Iterator[Entry]:
    for trunk in ("gcn_t", "gcn_s"):
        yield from bn(f"{trunk}.data_bn", 150)
        for i, (C, O) in enumerate(((3, 64), (64, 256), (256, 64)), 1):
            yield from ctr_unit(f"{trunk}.l{i}", C, O, residual=i > 1)
    for branch, inputs in (("t", 3200), ("s", 4096)):
        yield from linear(f"channel_{branch}.0", 2048, inputs)
        yield from ((f"channel_{branch}.1.weight", (2048,)), (f"channel_{branch}.1.bias", (2048,)))
        yield from linear(f"channel_{branch}.3", 2048, 2048)
        layer = f"{branch}_encoder.layers.0"
        yield from ((f"{layer}.self_attn.in_proj_weight", (6144, 2048)), (f"{layer}.self_attn.in_proj_bias", (6144,)))
        for name in ("self_attn.out_proj", "linear1", "linear2"):
            yield from linear(f"{layer}.{name}", 2048, 2048)
        for name in ("norm1", "norm2"):
            yield from ((f"{layer}.{name}.weight", (2048,)), (f"{layer}.{name}.bias", (2048,)))


#: Entries, the prefix under which a checkpoint holds them, what else it holds, and arguments of the encoder.
RELEASED: dict[str, tuple[Callable[[], Iterator[Entry]], str, list[str], dict[str, Any]]] = {
    "STGCN": (st_gcn, "encoder_q.", ["encoder_k.A", "queue", "queue_ptr"], {"width": 16}),
    "AGCN": (agcn, "module.", [], {}),
    "CTRGCN": (ctr_gcn, "", [], {}),
    "Hyperformer": (hyperformer, "", [], {}),
    "DSTA": (dsta, "module.", [], {}),
    "HCN": (hcn, "", [], {}),
    "SCDEncoder": (scd, "module.encoder_q.encoder.", ["module.t_queue", "module.encoder_q.t_proj.0.weight"], {}),
}


def checkpoint(name: str) -> tuple[dict[str, Tensor], str]:
    entries, prefix, others, _ = RELEASED[name]
    state = {prefix + key: torch.rand(shape) for key, shape in entries()}
    state = {key: x.long() if key.endswith("tracked") else x for key, x in state.items()}
    if name == "DSTA":  # the encoding is of the joint alone
        state = {key: x[:, :, :1].expand_as(x) if key.endswith(".pe") else x for key, x in state.items()}
    return {**state, **{key: torch.zeros(3) for key in others}}, prefix


@pytest.mark.parametrize("name", RELEASED)
def test_released_checkpoints_load(name: str) -> None:
    state, prefix = checkpoint(name)
    encoder = getattr(encoders, name)(**RELEASED[name][3])
    encoder.load_published(state)
    own = encoder.state_dict()
    for key, value in own.items():
        published = state[prefix + key]
        assert torch.equal(value, published[:, :, :1] if key.endswith(".pe") else published), key
    left = {key.removeprefix(prefix) for key in state if key.startswith(prefix)} - own.keys()
    heads = ("fc.", "fc8.", *(f"graph_layers.{i}.atts" for i in range(8)))
    assert all(key.startswith(heads) or key in RELEASED[name][2] for key in left), left


@pytest.mark.parametrize("name", RELEASED)
def test_what_is_missing_or_of_another_shape_is_named(name: str) -> None:
    state, prefix = checkpoint(name)
    encoder = getattr(encoders, name)(**RELEASED[name][3])
    last = [key for key in encoder.state_dict() if not key.endswith("tracked")][-1]
    entry = state.pop(prefix + last)
    with pytest.raises(ValueError, match=f"^state_dict: expected {prefix}{last} .* missing"):
        encoder.load_published(state)
    with pytest.raises(ValueError, match=f"^state_dict: size mismatch for {last}"):
        encoder.load_published({**state, prefix + last: torch.zeros(*entry.shape[:-1], entry.shape[-1] + 1)})
    with pytest.raises(ValueError, match="^state_dict: expected an entry"):
        encoder.load_published({"other": entry})


#: Of Hyperformer: 1-based edges of the released graphs, the farthest hop, and the groups of the joint stream.
ARMS_AND_LEGS = "6-5 7-6 8-7 10-9 11-10 12-11 13-1 14-13 15-14 16-15 17-1 18-17 19-18 20-19"
HYPERGRAPHS = {
    "ntu": (
        f"1-2 2-21 3-21 4-3 5-21 9-21 {ARMS_AND_LEGS} 22-8 23-8 24-12 25-12",
        11,
        [0, 4, 2, 2, 2, 2, 1, 1, 2, 2, 1, 1, 2, 3, 3, 3, 2, 3, 3, 3, 1, 0, 1, 0, 1],
    ),
    "nw_ucla": (f"1-2 2-3 4-3 5-3 9-3 {ARMS_AND_LEGS}", 10, [0] * 4 + [1] * 8 + [2] * 8),
}


@pytest.mark.parametrize("layout", HYPERGRAPHS)
def test_hyperformer_has_the_released_hops_and_groups(layout: str) -> None:
    edges, farthest, groups = HYPERGRAPHS[layout]
    near = torch.eye(len(groups))
    for child, parent in (map(int, edge.split("-")) for edge in edges.split()):
        near[child - 1, parent - 1] = near[parent - 1, child - 1] = 1
    # Two joints are as far apart as there are powers that do not join them.
    distances = sum((near.matrix_power(hop) == 0).long() for hop in range(farthest + 1))
    unit = encoders.Hyperformer(layout).l10.vit1
    assert torch.equal(unit.attn.hops, distances)
    assert unit.attn.hops.max() == farthest == len(unit.attn.rpe) - 1
    assert unit.parts.tolist() == groups


def test_hyperformer_takes_hops_and_groups_of_another_layout_from_it() -> None:
    mine = replace(LAYOUTS["nw_ucla"], parts=(tuple(range(8)), tuple(range(8, 20))))
    for layout in (LAYOUTS["coco"], mine):
        unit = encoders.Hyperformer(layout).l1.vit1
        assert torch.equal(unit.attn.hops, hops(layout))
        assert torch.equal(unit.parts, part_of_joint(layout))
