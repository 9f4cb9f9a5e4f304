"""Clip transforms on a batch (N, C, T, V, M), on the device of the batch, without a loop over clips.

An absent body is all zeros, and stays so under every function here. Random transforms take a `torch.Generator` of
the batch's device (None: torch's global one) and draw anew for every clip.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from ..graphs import Layout, get_layout


def _check(clips: Tensor, channels: int | None = None, joints: int | None = None) -> None:
    expected = f"(N, {channels or 'C'}, T, {joints or 'V'}, M)"
    if clips.dim() != 5 or channels not in (None, clips.shape[1]) or joints not in (None, clips.shape[3]):
        raise ValueError(f"clips: expected shape {expected}, got {tuple(clips.shape)}")
    if not clips.is_floating_point():
        raise TypeError(f"clips: expected a floating dtype, got {clips.dtype}")


def _take_frames(clips: Tensor, frames: Tensor) -> Tensor:
    """clips[n, :, frames[n, t]] for frames (N, T') int64."""
    index = frames[:, None, :, None, None].expand(-1, clips.shape[1], -1, *clips.shape[3:])
    return clips.gather(2, index)


def present_bodies(clips: Tensor) -> Tensor:
    """Which bodies are there, by frame: (N, 1, T, 1, M) bool."""
    return (clips != 0).any(3, keepdim=True).any(1, keepdim=True)


def first_body(clips: Tensor) -> Tensor:
    """Of every frame the first body that is there: (N, C, T, V, M) to (N, C, T, V, 1)."""
    index = present_bodies(clips).int().argmax(4, keepdim=True)
    return clips.gather(4, index.expand(*clips.shape[:4], 1))


def _check_lengths(clips: Tensor, lengths: Tensor, frames: int) -> Tensor:
    """The lengths as (N, 1) on the device of the clips. Their values are checked where that waits for no GPU."""
    _check(clips)
    if frames < 1:
        raise ValueError(f"frames: expected at least 1, got {frames}")
    if lengths.shape != clips.shape[:1] or lengths.is_floating_point():
        raise ValueError(f"lengths: expected {len(clips)} integers, got {tuple(lengths.shape)} of {lengths.dtype}")
    on_host = len(lengths) > 0 and lengths.device.type == "cpu"
    if on_host and not 1 <= int(lengths.min()) <= int(lengths.max()) <= clips.shape[2]:
        raise ValueError(
            f"lengths: expected 1 to {clips.shape[2]} frames, got {int(lengths.min())} to {int(lengths.max())}"
        )
    return lengths.to(clips.device, non_blocking=True)[:, None]


def pad(clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack clips (C, T_n, V, M) of different lengths: (N, C, max T_n, V, M), zero-padded, and lengths (N,) int64."""
    if not clips:
        raise ValueError("clips: expected at least one, got none")
    batch = torch.nn.utils.rnn.pad_sequence([clip.transpose(0, 1) for clip in clips], batch_first=True)
    return batch.transpose(1, 2), torch.tensor([clip.shape[1] for clip in clips])


def center(clips: Tensor, layout: str | Layout) -> Tensor:
    """Subtract the layout's centre joint from every joint, per frame and per body."""
    layout = get_layout(layout)
    _check(clips, joints=layout.num_joints)
    return clips - clips[:, :, :, layout.center, None]


def center_start(clips: Tensor, joint: int) -> Tensor:
    """Subtract the place of a joint of the first body that is there in the first frame from every joint of every frame,
    so that a clip keeps its way through the room."""
    _check(clips)
    if not 0 <= joint < clips.shape[3]:
        raise ValueError(f"joint: expected 0 to {clips.shape[3] - 1}, got {joint}")
    return torch.where(present_bodies(clips), clips - first_body(clips[:, :, :1])[:, :, :, joint, None], 0)


def unit_box(clips: Tensor) -> Tensor:
    """Stretch every axis of a clip to [-1, 1]: min-max over the frames, joints and bodies that are present. An axis
    along which nothing extends becomes 0."""
    _check(clips)
    present = present_bodies(clips)
    low = clips.masked_fill(~present, torch.inf).amin((2, 3, 4), keepdim=True)
    extent = clips.masked_fill(~present, -torch.inf).amax((2, 3, 4), keepdim=True) - low
    return torch.where(present & (extent > 0), 2 * (clips - low) / extent - 1, 0)


def align_shoulders(clips: Tensor, layout: str | Layout) -> Tensor:
    """Rotate about the vertical axis y, per frame and per body, until left to right shoulder points along +x (seen
    from above). Takes the view out of the clip, and the body's own turning with it. Clips are (N, 3, T, V, M)."""
    layout = get_layout(layout)
    _check(clips, channels=3, joints=layout.num_joints)
    left, right = layout.shoulders
    across = clips[:, :, :, right] - clips[:, :, :, left]
    length = torch.hypot(across[:, 0], across[:, 2])
    defined = length > 1e-6
    cos = torch.where(defined, across[:, 0] / length.clamp(min=1e-6), 1)[:, :, None]
    sin = torch.where(defined, across[:, 2] / length.clamp(min=1e-6), 0)[:, :, None]
    x, y, z = clips.unbind(1)
    return torch.stack([cos * x + sin * z, y, cos * z - sin * x], 1)


def normalize_scale(clips: Tensor, layout: str | Layout) -> Tensor:
    """Divide each clip by its mean bone length (over frames and bodies that are present), so that tall and short
    people, and metres and millimetres, come out alike."""
    layout = get_layout(layout)
    _check(clips, joints=layout.num_joints)
    lengths = bone_stream(clips, layout).norm(dim=1).sum(2)
    present = lengths > 0
    bones = present.sum((1, 2)).clamp(min=1) * len(layout.edges)
    mean = lengths.sum((1, 2)) / bones
    return clips / torch.where(mean > 0, mean, 1)[:, None, None, None, None]


def resize(clips: Tensor, lengths: Tensor, frames: int, starts: Tensor | None = None) -> Tensor:
    """Resample `lengths[n]` frames of each clip to `frames` by linear interpolation between frame centres.

    Frame t of the result lies at (t + 1/2) lengths[n] / frames - 1/2 of the clip, held inside its ends: half-pixel
    resizing, as cv2.resize and torch's interpolate(align_corners=False) do. A one-frame clip is repeated.

    Args:
        clips: (N, C, T, V, M). lengths: (N,) integers from 1 to T. frames: at least 1.
        starts: (N,) integers, the first of these frames, from 0 to T - lengths[n]; None: 0.
    """
    lengths = _check_lengths(clips, lengths, frames)
    steps = torch.arange(frames, device=clips.device)
    last = lengths - 1
    # float64: lengths / frames must not move a frame that falls exactly on a frame of the clip.
    position = ((steps + 0.5).double() * lengths / frames - 0.5).clamp(min=0).minimum(last)
    before = position.floor().long()
    weight = (position - before).to(clips.dtype)[:, None, :, None, None]
    after = (before + 1).minimum(last)
    if starts is not None:
        before, after = before + starts[:, None], after + starts[:, None]
    return torch.lerp(_take_frames(clips, before), _take_frames(clips, after), weight)


def uniform_frames(clips: Tensor, lengths: Tensor, frames: int, last: bool = True) -> Tensor:
    """Of the first `lengths[n]` frames of each clip, `frames` at equal distances from the first on, rounded down to
    whole frames.

    Args:
        clips: (N, C, T, V, M). lengths: (N,) integers from 1 to T. frames: at least 1.
        last: the last frame is among them; else they are ``lengths[n] / frames`` apart (DSTA-Net, SDS-CL).
    """
    lengths = _check_lengths(clips, lengths, frames)
    steps = torch.arange(frames, device=clips.device)
    return _take_frames(clips, steps * (lengths - 1) // max(frames - 1, 1) if last else steps * lengths // frames)


def random_frames(
    clips: Tensor, lengths: Tensor, frames: int, generator: Generator | None = None, replace: bool = True
) -> Tensor:
    """Of the first `lengths[n]` frames of each clip, `frames` drawn uniformly, in their order.

    Args:
        clips: (N, C, T, V, M). lengths: (N,) integers from 1 to T. frames: at least 1.
        replace: draw with replacement; else without, from as many copies of the frames as it takes (DSTA-Net, SDS-CL).
    """
    lengths = _check_lengths(clips, lengths, frames)
    places = frames if replace else clips.shape[2] + frames
    uniform = torch.rand(len(clips), places, generator=generator, device=clips.device, dtype=torch.float64)
    if replace:
        drawn = (uniform * lengths).long()
    else:
        copies = (frames + lengths - 1) // lengths
        outside = torch.arange(places, device=clips.device) >= copies * lengths
        drawn = uniform.masked_fill(outside, 2).topk(frames, largest=False).indices % lengths
    return _take_frames(clips, drawn.sort(1).values)


def preprocess(
    clips: Tensor, lengths: Tensor, layout: str | Layout, frames: int | None, *, align: bool = True, scale: bool = False
) -> Tensor:
    """Padded clips (N, 3, T, V, M) to (N, 3, frames, V, M): center, `normalize_scale` if `scale`, resize the valid
    frames unless `frames` is None, then `align_shoulders` if `align` (order and default as in CrosSCLR, AimCLR and
    SkeleMixCLR)."""
    clips = center(clips, layout)
    if scale:
        clips = normalize_scale(clips, layout)
    if frames is not None:
        clips = resize(clips, lengths, frames)
    return align_shoulders(clips, layout) if align else clips


def random_crop(clips: Tensor, generator: Generator | None = None, padding_ratio: int = 6) -> Tensor:
    """Temporal crop: mirror T // padding_ratio frames at both ends, the end frames included, and cut out T frames
    from a start drawn uniformly."""
    _check(clips)
    if padding_ratio < 1:
        raise ValueError(f"padding_ratio: expected at least 1, got {padding_ratio}")
    frames = clips.shape[2]
    padding = frames // padding_ratio
    start = torch.randint(-padding, padding + 1, (len(clips), 1), generator=generator, device=clips.device)
    index = start + torch.arange(frames, device=clips.device)
    index = torch.where(index < 0, -1 - index, index)
    return _take_frames(clips, torch.where(index >= frames, 2 * frames - 1 - index, index))


def random_shear(clips: Tensor, generator: Generator | None = None, amplitude: float = 0.5) -> Tensor:
    """Multiply every point of a clip (N, 3, T, V, M) by one matrix: ones on the diagonal, the six others drawn from
    U(-amplitude, amplitude)."""
    _check(clips, channels=3)
    if amplitude < 0:
        raise ValueError(f"amplitude: expected at least 0, got {amplitude}")
    drawn = torch.rand(len(clips), 3, 3, generator=generator, device=clips.device, dtype=clips.dtype)
    matrix = (2 * drawn - 1) * amplitude
    matrix.diagonal(dim1=1, dim2=2).fill_(1)
    return torch.bmm(matrix, clips.flatten(2)).view_as(clips)


def bone_stream(clips: Tensor, layout: str | Layout) -> Tensor:
    """bone[v] = x[v] - x[parent(v)]; the centre joint becomes zero."""
    layout = get_layout(layout)
    _check(clips, joints=layout.num_joints)
    return clips - clips[:, :, :, torch.tensor(layout.parents, device=clips.device)]


def motion_stream(clips: Tensor, lengths: Tensor | None = None) -> Tensor:
    """motion[t] = x[t+1] - x[t]; zero in the last frame: with `lengths` (N,) the last of these, and all after it."""
    _check(clips)
    motion = torch.cat([clips.diff(dim=2), torch.zeros_like(clips[:, :, :1])], 2)
    if lengths is None:
        return motion
    inside = torch.arange(clips.shape[2], device=clips.device) < lengths[:, None] - 1
    return torch.where(inside[:, None, :, None, None], motion, 0)
