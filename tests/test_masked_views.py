"""The views of SCD-Net: crops, rotations, flips and masks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Generator

from skelops.augment import (
    MaskedViews,
    flip,
    random_crop_resize,
    random_main_rotation,
    structural_mask,
    temporal_mask,
)
from skelops.graphs import get_layout


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("layout", ["ntu", "nw_ucla"])
def test_structural_mask_hides_what_its_seeds_reach(layout: str) -> None:
    joints = get_layout(layout).num_joints
    clips = torch.ones(200, 3, 4, joints, 2)
    masked = structural_mask(clips, layout, generator())
    hidden = (masked == 0).all(dim=(1, 2, 4))
    assert torch.equal(hidden, (masked == 0).any(1).any(1).any(2))
    assert (hidden.sum(1) == 8).all()
    share = hidden.double().mean(0)
    center = get_layout(layout).center
    assert share[center] == share.max() and share[center] > 0.5  # most bones hang on it
    assert share.min() < 0.25


def test_structural_mask_of_one_seed() -> None:
    """One seed reaches itself and what is within two bones; of equal joints the higher numbers are hidden."""
    layout = get_layout("ntu")
    near = torch.eye(25, dtype=torch.int64)
    for child, parent in layout.edges:
        near[child, parent] = near[parent, child] = 1
    walks = near @ near
    hidden = (structural_mask(torch.ones(50, 3, 1, 25, 1), layout, generator(), seeds=1)[:, 0, 0, :, 0] == 0).int()
    expected = [torch.zeros(25, dtype=torch.int32).index_fill(0, row.argsort(stable=True)[-8:], 1) for row in walks]
    assert all(any(torch.equal(row, wanted) for wanted in expected) for row in hidden)


def test_temporal_mask_hides_whole_segments() -> None:
    masked = temporal_mask(torch.ones(50, 3, 64, 5, 2), generator())
    hidden = (masked == 0).all(dim=(1, 3, 4))
    assert (hidden.sum(1) == 24).all()
    assert torch.equal(hidden, hidden[:, ::4].repeat_interleave(4, 1))
    assert hidden.any(0).all()


def test_flip_is_its_own_inverse() -> None:
    clips = torch.randn(2, 3, 4, 25, 2)
    assert torch.equal(flip(flip(clips, "ntu"), "ntu"), clips)
    assert torch.equal(flip(clips, "ntu")[:, :, :, 4], clips[:, :, :, 8])


def test_main_rotation_turns_about_one_axis() -> None:
    clips = torch.randn(100, 3, 2, 5, 1)
    turned = random_main_rotation(clips, generator(), degrees=90, others=0)
    torch.testing.assert_close(turned.norm(dim=1), clips.norm(dim=1))
    kept = (turned - clips).abs().amax(dim=(2, 3, 4)) < 1e-5
    assert (kept.sum(1) == 1).double().mean() > 0.95  # of a small angle more
    assert kept.any(0).all()


@pytest.mark.parametrize("length", [20, 64, 90])
def test_crop_resize(length: int) -> None:
    """Frames count themselves, so that a crop shows where it lies."""
    clips = torch.arange(90.0)[None, None, :, None, None].expand(300, 3, 90, 2, 1).contiguous()
    lengths = torch.full((300,), length)
    crop = random_crop_resize(clips, lengths, 32, generator())[:, 0, :, 0, 0]
    assert crop.shape == (300, 32)
    assert (crop.diff(dim=1) >= 0).all() and crop.min() >= 0 and crop.max() <= length - 1
    span = crop[:, -1] - crop[:, 0]
    if length == 20:  # shorter than the view: all of it
        assert (span > 18).all()
    else:
        assert span.min() < 33 and span.max() > 0.9 * length and (crop[:, 0] > 0).any()


def test_views_repeat_and_take_each_step_half_the_time() -> None:
    clips, views = torch.randn(64, 3, 80, 25, 2), MaskedViews(frames=32)
    view = views(clips, generator(1))
    assert view.shape == (64, 3, 32, 25, 2)
    assert torch.equal(view, views(clips, generator(1)))
    joints = (view == 0).all(dim=(1, 2, 4)).any(1).double().mean()
    frames = (view == 0).all(dim=(1, 3, 4)).any(1).double().mean()
    assert 0.25 < joints < 0.75 and 0.25 < frames < 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "frames: expected a positive integer, got 0"),
        ({"probability": 2}, "probability: expected 0 to 1, got 2"),
        ({"joints": 25}, "joints: expected 0 to 24, got 25"),
        ({"segments": 16}, "segments: expected 0 to 15, got 16"),
        ({"degrees": -1}, "degrees: expected at least 0, got -1"),
        ({"shear": -1}, "shear: expected at least 0, got -1"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedViews(**change)


CLIPS = torch.ones(2, 3, 20, 25, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: structural_mask(CLIPS, "ntu", masked=30), "masked: expected 0 to 24, got 30"),
        (lambda: structural_mask(CLIPS, "ntu", masked=-1), "masked: expected 0 to 24, got -1"),
        (lambda: structural_mask(CLIPS, "ntu", seeds=0), "seeds: expected a positive integer, got 0"),
        (lambda: structural_mask(CLIPS, "nw_ucla"), "clips: expected 20 joints as layout nw_ucla has, got 25"),
        (lambda: flip(CLIPS, "nw_ucla"), "clips: expected 20 joints as layout nw_ucla has, got 25"),
        (lambda: flip(CLIPS[0], "ntu"), "clips: expected shape .* got .3, 20, 25, 1."),
        (lambda: temporal_mask(CLIPS, segments=0), "segments: expected a positive integer, got 0"),
        (lambda: temporal_mask(CLIPS, segments=4, masked=4), "masked: expected 0 to 3, got 4"),
        (lambda: temporal_mask(CLIPS, masked=2.5), "masked: expected 0 to 15, got 2.5"),
        (lambda: random_main_rotation(CLIPS, degrees=-1), "degrees: expected at least 0, got -1"),
        (lambda: random_main_rotation(CLIPS, others=-1), "others: expected at least 0, got -1"),
        (lambda: random_crop_resize(CLIPS, torch.tensor([9, 9]), 0), "frames: expected a positive integer, got 0"),
        (lambda: random_crop_resize(CLIPS, torch.tensor([9, 9]), 4, ratio=(0.5, 2)), "ratio: expected 0 <= least"),
    ],
)
def test_numbers_out_of_range_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_segments_past_the_end_hide_nothing() -> None:
    """20 frames in segments of 2: 10 of the 16 have frames."""
    hidden = (temporal_mask(torch.ones(2000, 3, 20, 25, 1), generator()) == 0).all(dim=(1, 3, 4))
    assert torch.equal(hidden, hidden[:, ::2].repeat_interleave(2, 1))
    assert hidden.sum(1).max() == 12 and 7 < hidden.sum(1).double().mean() < 8


def test_clips_have_the_joints_of_the_layout() -> None:
    with pytest.raises(ValueError, match="clips: expected 25 joints as layout ntu has, got 20"):
        MaskedViews()(torch.zeros(2, 3, 8, 20, 1))
