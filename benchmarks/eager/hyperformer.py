"""Hyperformer in its released style: permutes, four score tensors per head and frame, softmax, matmul."""

from __future__ import annotations

import torch
from skelops.methods.encoders.hyperformer import hypergraph
from torch import Tensor, nn
from torch.nn.functional import one_hot

from benchmarks.eager.common import MultiScaleTCN, UnitEncoder, residual
from skelops.graphs import get_layout


class MHSA(nn.Module):
    hops: Tensor

    def __init__(self, inputs: int, dim: int, layout: str, heads: int) -> None:
        super().__init__()
        joints = get_layout(layout).num_joints
        self.num_heads, self.dim_head = heads, dim // heads
        self.register_buffer("hops", hypergraph(layout)[0], persistent=False)
        self.rpe = nn.Parameter(torch.zeros(int(self.hops.max()) + 1, dim))
        self.w1 = nn.Parameter(torch.zeros(heads, dim // heads))
        self.outer = nn.Parameter(torch.eye(joints).repeat(heads, 1, 1))
        self.alpha = nn.Parameter(torch.zeros(1))
        self.kv = nn.Conv2d(inputs, dim * 2, 1, bias=False)
        self.q = nn.Conv2d(inputs, dim, 1, bias=False)
        self.proj = nn.Conv2d(dim, dim, 1, groups=6)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        N, _, T, V = x.shape
        H, D = self.num_heads, self.dim_head
        k, v = self.kv(x).reshape(N, 2, H, D, T, V).permute(1, 0, 4, 2, 5, 3)
        q = self.q(x).reshape(N, H, D, T, V).permute(0, 3, 1, 4, 2)
        e_k = e.reshape(N, H, D, T, V).permute(0, 3, 1, 4, 2)
        k_r = self.rpe[self.hops].view(V, V, H, D)
        a = q @ k.transpose(-2, -1)
        b = torch.einsum("bthnd,nmhd->bthnm", q, k_r)
        c = torch.einsum("bthnd,bthmd->bthnm", q, e_k)
        d = torch.einsum("hd,bthmd->bthm", self.w1, e_k).unsqueeze(-2)
        attention = ((a + b + c + d) * D**-0.5).softmax(dim=-1)
        y = (self.alpha * attention + self.outer) @ v
        return self.proj(y.transpose(3, 4).reshape(N, T, -1, V).transpose(1, 2))


class UnitViT(nn.Module):
    label: Tensor

    def __init__(self, inputs: int, dim: int, layout: str, heads: int) -> None:
        super().__init__()
        self.register_buffer("label", hypergraph(layout)[1], persistent=False)
        self.parts = int(self.label.max()) + 1
        self.norm1 = nn.LayerNorm(inputs)
        self.attn = MHSA(inputs, dim, layout, heads)
        self.skip_proj = nn.Conv2d(inputs, dim, 1, bias=False) if inputs != dim else None
        self.pe_proj = nn.Conv2d(inputs, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        label = one_hot(self.label, self.parts).to(x.dtype)
        z = self.pe_proj(x @ (label / label.sum(dim=0, keepdim=True))).permute(3, 0, 1, 2)
        e = z[self.label].permute(1, 2, 3, 0)
        y = self.attn(self.norm1(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), e)
        return y + (x if self.skip_proj is None else self.skip_proj(x))


class Unit(nn.Module):
    def __init__(self, inputs: int, dim: int, layout: str, heads: int, stride: int) -> None:
        super().__init__()
        self.vit1 = UnitViT(inputs, dim, layout, heads)
        self.tcn1 = MultiScaleTCN(dim, stride)
        self.act = nn.ReLU(inplace=True)
        self.residual = residual(inputs, dim, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.tcn1(self.vit1(x)) + self.residual(x))


class Hyperformer(UnitEncoder):
    def __init__(
        self, layout: str = "ntu", in_channels: int = 3, bodies: int = 2, heads: int = 9, head_dim: int = 24
    ) -> None:
        dim = heads * head_dim
        units = (Unit(dim if i else in_channels, dim, layout, heads, stride=2 if i in (4, 7) else 1) for i in range(10))
        super().__init__(layout, in_channels, bodies, units)
