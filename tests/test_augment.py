"""skelops.augment: SkeleMix and random views."""

from __future__ import annotations

import math

import pytest
import torch

from skelops.augment import RandomViews, random_rotation, random_scale, skelemix
from skelops.graphs import get_layout


def clips_of(layout: str, clips: int = 6, frames: int = 64, bodies: int = 2) -> torch.Tensor:
    return torch.randn(clips, 3, frames, get_layout(layout).num_joints, bodies)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("layout", "bodies"), [("ntu", 2), ("nw_ucla", 1)])
@pytest.mark.parametrize("frames", [64, 50, 13])
def test_pasted_cells_are_the_partners_and_others_are_untouched(layout: str, bodies: int, frames: int) -> None:
    clips = clips_of(layout, frames=frames, bodies=bodies)
    before = clips.clone()
    mix = skelemix(clips, layout, generator(1))
    assert torch.equal(clips, before)
    assert mix.mask.shape == (-(-frames // 4), clips.shape[3])
    for clip in range(len(clips)):
        for frame in range(frames):
            pasted = mix.mask[frame // 4]
            source = clips[mix.partner[clip], :, frame]
            assert torch.equal(mix.clips[clip, :, frame, pasted], source[:, pasted])
            assert torch.equal(mix.clips[clip, :, frame, ~pasted], clips[clip, :, frame, ~pasted])


def test_draws_follow_the_released_law() -> None:
    """Every allowed number of parts, length, start and shift occurs, and nothing else."""
    layout = get_layout("ntu")
    clips = clips_of("ntu", clips=7, bodies=1)
    draws = generator(0)
    parts, runs, shifts, which = set(), set(), set(), torch.zeros(5)
    for _ in range(1500):
        mix = skelemix(clips, layout, draws)
        blocks, joints = mix.mask.any(1), mix.mask.any(0)
        assert torch.equal(mix.mask, blocks[:, None] & joints)
        chosen = torch.tensor([joints[list(part)].all() for part in layout.parts])
        assert joints.sum() == sum(len(part) for part, taken in zip(layout.parts, chosen, strict=True) if taken)
        run = blocks.nonzero()[:, 0]
        assert torch.equal(run, torch.arange(run[0], run[0] + len(run)))
        parts.add(int(chosen.sum()))
        runs.add((len(run), int(run[0])))
        which += chosen
        shift = (mix.partner - torch.arange(7)) % 7
        assert (shift == shift[0]).all()
        shifts.add(int(shift[0]))
    assert parts == {2, 3}
    assert runs == {(length, start) for length in range(7, 12) for start in range(16 - length + 1)}
    assert shifts == set(range(1, 6))
    assert (which / 1500 - 0.5).abs().max() < 0.06


def test_short_clips_scale_the_run() -> None:
    draws, lengths = generator(0), set()
    for _ in range(200):
        lengths.add(int(skelemix(clips_of("ntu", frames=32, bodies=1), "ntu", draws).mask.any(1).sum()))
    assert lengths == {4, 5, 6}  # of 8 blocks


def test_a_generator_fixes_the_mix() -> None:
    clips = clips_of("nw_ucla")
    first, second, other = (skelemix(clips, "nw_ucla", generator(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first.clips, other.clips)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clips": torch.zeros(2, 3, 8, 25, 1)}, "clips"),
        ({"clips": torch.zeros(4, 3, 8, 20, 1)}, "clips"),
        ({"parts": (0, 2)}, "parts"),
        ({"parts": (3, 2)}, "parts"),
        ({"share": (0.5, 1.0)}, "share"),
        ({"stride": 0}, "stride"),
        ({"stride": 2.5}, "stride"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}: expected"):
        skelemix(**{"clips": torch.zeros(4, 3, 8, 25, 1), "layout": "ntu", **arguments})


def test_rotation_keeps_heights_and_lengths() -> None:
    clips = clips_of("ntu")
    turned = random_rotation(clips, generator(0), 180)
    torch.testing.assert_close(turned[:, 1], clips[:, 1], rtol=0, atol=0)
    torch.testing.assert_close(turned.norm(dim=1), clips.norm(dim=1))
    # As complex numbers z + ix, every point of a clip is multiplied by the same number.
    factors = (torch.complex(turned[:, 2], turned[:, 0]) / torch.complex(clips[:, 2], clips[:, 0])).flatten(1)
    torch.testing.assert_close(factors, factors.mean(1, keepdim=True).expand_as(factors), rtol=1e-3, atol=1e-3)
    assert factors[:, 0].angle().unique().numel() == len(clips)
    torch.testing.assert_close(random_rotation(clips, generator(0), 0), clips)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rotations_turn_about_their_axis_within_the_range(axis: str) -> None:
    clips = torch.zeros(2000, 3, 1, 20, 1)
    number = "xyz".index(axis)
    start, towards = (number + 1) % 3, (number + 2) % 3
    clips[:, start], clips[:, number] = 1, 3
    turned = random_rotation(clips, generator(0), 60, axis)[:, :, 0, 0, 0]
    angle = torch.atan2(turned[:, towards], turned[:, start]).rad2deg()
    assert (turned[:, number] == 3).all()
    assert -60 <= angle.min() < -58
    assert 58 < angle.max() <= 60
    assert angle.mean().abs() < 3
    with pytest.raises(ValueError, match="axis: expected x, y or z, got 'w'"):
        random_rotation(clips, axis="w")


def test_scales_are_those_of_the_range() -> None:
    clips = clips_of("nw_ucla", clips=500, frames=2, bodies=1)
    scaled = random_scale(clips, generator(0), 0.5)
    factors = (scaled / clips).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors))
    assert 0.5 <= factors.min() < 0.51
    assert 1.49 < factors.max() <= 1.5
    with pytest.raises(ValueError, match="amplitude: expected 0 to 1, got 2"):
        random_scale(clips, amplitude=2)


def test_views_draw_frames_of_clips_of_different_lengths() -> None:
    """The training clips of CTR-GCN's feeder: whatever the padding, a view lies in the box and has its frames."""
    lengths = torch.tensor([4, 9, 30])
    clips = clips_of("nw_ucla", clips=3, frames=30, bodies=1)
    for clip, length in zip(clips, lengths, strict=True):
        clip[:, length:] = 0
    views = RandomViews(60, 60, 0.5, True, 52, 0, 0)
    view = views(clips, generator(0), lengths)
    assert view.shape == (3, 3, 52, 20, 1)
    assert view.abs().amax((2, 3, 4)).allclose(torch.ones(3, 3))
    assert view.abs().sum((1, 3, 4)).min() > 0, "no frame of the padding"
    longer = torch.cat([clips, torch.zeros(3, 3, 7, 20, 1)], 2)
    torch.testing.assert_close(views(longer, generator(0), lengths), view)
    assert RandomViews(frames=9)(clips, generator(0)).shape == (3, 3, 9, 20, 1)


def test_views_are_reproducible_and_differ() -> None:
    clips, views = clips_of("ntu"), RandomViews(rotation=30)
    assert torch.equal(views(clips, generator(0)), views(clips, generator(0)))
    draws = generator(0)
    assert not torch.equal(views(clips, draws), views(clips, draws))


def test_views_without_amplitude_are_the_clips() -> None:
    clips = clips_of("ntu")
    assert torch.equal(RandomViews(rotation=0, crop=0, shear=0)(clips, generator(0)), clips)


def test_views_are_runs_of_frames_turned_about_every_axis() -> None:
    """The training clips of STD-CL: half or more of the frames in a run, none of the padding."""
    lengths = torch.tensor([100, 300]).repeat(300)
    clips = torch.zeros(600, 3, 300, 20, 1)
    clips[:, 0] = torch.arange(1.0, 301)[:, None, None]
    for clip, length in zip(clips, lengths, strict=True):
        clip[:, length:] = -1e6
    runs = RandomViews(frames=64, share=0.5, crop=0, shear=0)(clips, generator(0), lengths)[:, 0, :, 0, 0]
    steps = runs.diff(dim=1)[:, 1:-1]
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), atol=1e-2, rtol=0)
    for length, least in ((100, 64), (300, 150)):
        used = steps[lengths == length].mean(1) * 64
        assert least - 1 < used.min() < least + 5
        assert length - 5 < used.max() < length + 1
        assert runs[lengths == length].min() < 5
        assert length - 5 < runs[lengths == length].max() <= length
    turned = RandomViews(17.19, 17.19, crop=0, shear=0, roll=17.19)(clips[:, :, :1], generator(0))[:, :, 0, 0, 0]
    torch.testing.assert_close(turned.norm(dim=1), torch.ones(600))
    cosine, sine = math.cos(math.radians(17.19)), math.sin(math.radians(17.19))
    assert cosine**2 - sine**3 - 1e-4 <= turned[:, 0].min() < cosine, "turned about y and z"
    assert 0.25 < turned[:, 1].abs().max() < 0.4


@pytest.mark.parametrize("name", ["rotation", "tilt", "scale", "frames", "crop", "shear", "roll", "share"])
def test_negative_amplitudes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected at least 0, got -1"):
        RandomViews(**{name: -1})


@pytest.mark.parametrize("arguments", [{"share": 0.5}, {"replace": False}])
def test_ways_to_draw_frames_need_their_number(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="^frames: expected at least 1 with share or without replacement, got 0"):
        RandomViews(**arguments)
    with pytest.raises(ValueError, match="^share: expected 0 to 1, got 2"):
        RandomViews(frames=4, share=2)
