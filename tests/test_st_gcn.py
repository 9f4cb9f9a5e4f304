"""What is particular to ST-GCN; tests/test_encoders.py has what all encoders share."""

from __future__ import annotations

import pytest
import torch
from skelops.methods import STGCN


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
    rates = [block.dropout for block in STGCN("ntu", width=4, dropout=0.5).st_gcn_networks]
    assert rates == [0.0] + [0.5] * 9
