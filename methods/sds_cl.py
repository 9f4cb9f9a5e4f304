"""SDS-CL: Xu et al., Spatiotemporal Decouple-and-Squeeze Contrastive Learning (IEEE TNNLS 2023, arXiv 2302.02316).

"Released" is github.com/1xbq1/SDS-CL at 6a6e085: model/dstanet.py (attention and projectors) and its contrast loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from skelops.methods.encoders import Encoder
from skelops.methods.framework import Batch, Framework
from torch import Generator, Tensor, nn

import skelops
from skelops._checks import positive
from skelops.data.transforms import motion_stream
from skelops.nn import Linear, TemporalConv, recompute
from skelops.nn.joint_attention import SLOPE
from skelops.nn.recomputing import recomputed
from skelops.nn.scaled import ConvNorm, initialise, join
from skelops.ops.squeeze_pool import SqueezePool

#: Which token sets are contrasted, of (intra joint, intra motion, inter joint, inter motion).
PAIRS = ((0, 1), (0, 3), (1, 2), (2, 3))


class StreamAttention(nn.Module):
    """One of the four attentions of SIIA, within a stream (intra) or from one to the other (inter)::

        A[b,s,v,w] = tanh(sum_{c,t} key[b,s,c,t,v] query[b,s,c,t,w] / (C' T)),  y = act(x + BN(conv1x1(value A)))

    over joints, or over frames in their place. The query and the residual are of the stream that is attended for, key
    and value of the other one, which is the same where intra. (Released: ``STAttentionBlock`` of SIIA, without softmax,
    encodings and dropout.)

    Args:
        channels: C of the maps.
        heads: S, with C' = C / S channels each.
        axis: what attends to what.
        inter: whether key and value come from the other stream.
    """

    def __init__(self, channels: int, heads: int, axis: Literal["joints", "frames"], inter: bool) -> None:
        super().__init__()
        self.heads, self.axis = heads, axis
        self.query = TemporalConv(channels, channels) if inter else None
        # Groups of channels: (query,) key, value, each with one slice per head.
        self.maps = TemporalConv(channels, (2 if inter else 3) * channels)
        self.out = ConvNorm(channels, channels)
        initialise(self)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, C, T, V), and the other stream for an inter attention -> (B, C, T, V)."""
        if self.query is None:
            query, key, value = self.maps(x).chunk(3, dim=1)
        else:
            query, (key, value) = self.query(x), self.maps(other).chunk(2, dim=1)
        adjacency = skelops.joint_attention(key, query, heads=self.heads, axis=self.axis)
        aggregate = partial(skelops.aggregate, axes="bkvw", sum_subsets=False, axis=self.axis)
        y = recomputed(aggregate, value.unflatten(1, (self.heads, -1)), adjacency)
        return recomputed(join, self.out(y.flatten(1, 2)), x, SLOPE)


def _projector(features: int) -> nn.Sequential:
    return nn.Sequential(Linear(features, features), nn.ReLU(), Linear(features, features))


class SDSCL(Framework):
    """SDS-CL: joint and motion streams of a clip are each other's views.

    One encoder maps both streams; attention over joints and over frames, within and between the streams, gives eight
    maps. Squeezed over frames (those of attention over frames) they are tokens of joints, over joints (those of
    attention over joints) tokens of frames, and over both the global feature of a stream. Tokens at the same place are
    each other's positives, all others of the clip negatives (`skelops.nt_xent`)::

        L = sum of TSL over 4 pairs + sum of STL over 4 pairs + GL

    TSL contrasts the tokens of joints, STL those of frames, GL the global features within the batch (sections III-C and
    III-D; released weights of one each).

    Args:
        encoder: whose features are its pooled last map; published with DSTA.
        heads: S of the attentions.
        temperature: of every term.
        tokens: whether TSL and STL are there; False leaves GL alone (the ablation of the paper).
        aligned: one view for both streams: the same frames, turned and cropped alike. False draws a view for each, as
            released (where a view is a choice of frames): tokens of frames that are positives of each other then come
            from slightly different times, and no turn or crop that the streams share tells clips apart.

    Raises:
        ValueError: the encoder does not pool its last map, the channels do not divide among the heads, or
            ``temperature`` is not above zero.
    """

    def __init__(
        self, encoder: Encoder, heads: int = 4, temperature: float = 0.07, tokens: bool = True, aligned: bool = True
    ) -> None:
        super().__init__()
        positive("temperature", temperature)
        encoder.check_pools_its_map("SDSCL")
        channels = encoder.feature_dim
        if channels % heads:
            raise ValueError(f"heads: expected a divisor of the {channels} channels of the last map, got {heads}")
        self.encoder_q = encoder
        self.temperature, self.tokens, self.aligned = temperature, tokens, aligned
        self.attention = nn.ModuleDict(
            {
                f"{axis}_{kind}": StreamAttention(channels, heads, axis, kind == "inter")
                for axis in ("joints", "frames")
                for kind in ("intra", "inter")
            }
        )
        if tokens:
            self.token_projector = _projector(channels)
        self.global_projector = _projector(4 * channels)

    def step(self, batch: Batch, view: Callable[[Tensor], Tensor], generator: Generator | None) -> dict[str, Tensor]:
        """The joint and the motion stream of one view, or of two where frames are not aligned."""
        motion = motion_stream(batch.clips, batch.lengths)
        if self.aligned:
            return self(*view(torch.cat([batch.clips, motion], dim=4)).chunk(2, dim=4))
        return self(view(batch.clips), view(motion))

    def forward(self, joint: Tensor, motion: Tensor) -> dict[str, Tensor]:
        """Losses of the two streams (N, C, T, V, M) of a batch.

        Returns:
            Scalars: ``loss`` and its parts ``loss_global``, ``loss_joints`` (TSL) and ``loss_frames`` (STL).
        """
        of_joint, of_motion = self.encoder_q.feature_map(torch.cat([joint, motion])).chunk(2)
        squeezed = {axis: self._squeeze(axis, of_joint, of_motion, joint.shape[4]) for axis in ("joints", "frames")}
        # (2, N, 4 C): the means of the four maps of each stream, of (intra joint, intra motion, inter joint, motion).
        means = [pooled.mean for pools in squeezed.values() for pooled in pools]
        whole = torch.stack([torch.cat(means[stream::2], dim=1) for stream in range(2)])
        losses = {"global": self._contrast(self.global_projector(whole)[:, None], ((0, 1),))}
        if self.tokens:
            # Attention over frames goes with tokens of joints, and the other way about.
            of_joints = torch.stack([pooled.joints.mT for pooled in squeezed["frames"]])
            of_frames = torch.stack([pooled.frames.mT for pooled in squeezed["joints"]])
            losses["joints"] = self._contrast(self.token_projector(of_joints), PAIRS)
            losses["frames"] = self._contrast(self.token_projector(of_frames), PAIRS)
        loss = torch.stack(list(losses.values())).sum()
        return {"loss": loss, **{f"loss_{name}": value.detach() for name, value in losses.items()}}

    def _squeeze(self, axis: str, joint: Tensor, motion: Tensor, bodies: int) -> list[SqueezePool]:
        """The pooled maps of (intra joint, intra motion, inter joint, inter motion)."""

        def pooled(kind: str, *streams: Tensor) -> SqueezePool:
            return skelops.squeeze_pool(self.attention[f"{axis}_{kind}"](*streams), bodies=bodies)

        streams = ("intra", joint), ("intra", motion), ("inter", joint, motion), ("inter", motion, joint)
        attend = partial(recompute, pooled) if self.encoder_q.recomputing else pooled
        return [attend(*arguments) for arguments in streams]

    def _contrast(self, tokens: Tensor, pairs: tuple[tuple[int, int], ...]) -> Tensor:
        return skelops.nt_xent(tokens, pairs, self.temperature).sum()
