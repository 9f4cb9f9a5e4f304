"""Recipes for clips of Kinect v2, against their formulas in plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from skelops.data import ntu, recipes
from skelops.data.transforms import pad, preprocess, resize, uniform_frames


def clip(frames: int, seed: int = 0, second: range = range(0)) -> Tensor:
    """(3, T, 25, 2): a body away from the origin, and another in some of the frames."""
    random = np.random.default_rng(seed)
    bodies = (
        random.normal((2, 1, 3), (0.2, 0.5, 0.1), (frames, 2, 25, 3)) + 0.01 * np.arange(frames)[:, None, None, None]
    )
    bodies[[frame not in second for frame in range(frames)], 1] = 0
    return torch.from_numpy(bodies.astype(np.float32)).permute(3, 0, 2, 1)


def turn(points: np.ndarray, direction: np.ndarray, axis: list[float]) -> np.ndarray:
    """The rotation by the angle between a direction and an axis, about what is perpendicular to both (Rodrigues)."""
    direction = direction / np.linalg.norm(direction)
    about = np.cross(direction, axis)
    about = about / np.linalg.norm(about)
    angle = np.arccos(direction @ axis)
    return (
        points * np.cos(angle)
        + np.cross(about, points) * np.sin(angle)
        + about * (points @ about)[..., None] * (1 - np.cos(angle))
    )


def points(x: Tensor) -> np.ndarray:
    """(3, T, 25, M) as (M, T, 25, 3)."""
    return x.double().permute(3, 1, 2, 0).numpy()


X, Z = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]


def test_scd_net_is_centred_and_turned_by_its_first_body() -> None:
    whole = clip(9, second=range(9))
    found = points(recipes.scd_net(whole[None])[0])
    expected = points(whole)
    expected = expected - expected[:1, :, 1:2]
    expected = turn(expected, expected[0, 0, 1] - expected[0, 0, 0], Z)
    expected = turn(expected, expected[0, 0, 8] - expected[0, 0, 4], X)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(found[1, :, 1], 0), "the second body keeps its place beside the first"


def test_sds_cl_is_centred_scaled_and_turned_by_its_first_frame() -> None:
    whole = clip(9, second=range(4, 9))
    found = points(recipes.sds_cl(whole[None])[0])
    expected = points(whole)
    there = expected.any((2, 3), keepdims=True)
    expected = (expected - expected[0, 0, 0]) * there
    expected = expected / np.linalg.norm(expected[0, 0, 20] - expected[0, 0, 0])
    expected = turn(expected, expected[0, 0, 20] - expected[0, 0, 0], Z)
    expected = turn(expected, (expected[0, 0, 5] - expected[0, 0, 20]) * [1, 1, 0], X)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found[0, 0, 20], [0, 0, 1], atol=1e-5)
    assert abs(found[0, 0, 5, 1] - found[0, 0, 20, 1]) < 1e-5 < found[0, 0, 5, 0] - found[0, 0, 20, 0]
    assert not found[1, :4].any(), "an absent body stays so"


def test_std_cl_centres_each_body_but_for_the_way_of_its_joint_21() -> None:
    whole = clip(9, second=range(3, 9))
    found = points(recipes.std_cl(whole[None])[0])
    expected = points(whole)
    there = expected.any((2, 3), keepdims=True)
    way = (expected[:, :, 20] - expected[0, 0, 1]) * there[..., 0]
    expected = expected - expected[:, :, 20:21]
    expected[:, :, 20] = way
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_clip_whose_first_body_comes_later_goes_by_the_other() -> None:
    whole = clip(6, second=range(6))
    whole[:, :2, :, 0] = 0
    for recipe in recipes.RECIPES.values():
        changed = recipe.change(whole[None])
        assert changed.isfinite().all()
        assert not changed[:, :, :2, :, 0].any()
    spine = recipes.sds_cl(whole[None])[0, :, 0, 20, 1]
    torch.testing.assert_close(spine, torch.tensor([0.0, 0, 1]), atol=1e-5, rtol=0)


def test_turning_leaves_what_it_cannot_or_need_not_turn() -> None:
    clips, directions = torch.randn(3, 3, 2, 25, 1), torch.tensor([[0.0, 0, 2], [0, 0, 0], [0, 0, -1]])
    torch.testing.assert_close(recipes.turn_onto(clips, directions, 2), clips)
    near = torch.tensor([[1e-3, 0, -1.0]]).expand(3, 3)
    turned = recipes.turn_onto(clips, near, 2)
    torch.testing.assert_close(turned.norm(dim=1), clips.norm(dim=1), atol=1e-3, rtol=1e-3)


def test_absent_bodies_are_filled_over_and_over() -> None:
    counted = torch.arange(1.0, 9)[None, :, None, None].expand(3, 8, 25, 2).clone()
    counted[:, 3:, :, 1] = 0
    assert recipes.repeat_bodies(counted)[0, :, 0, 1].tolist() == [1, 2, 3, 1, 2, 3, 1, 2]
    counted = torch.arange(1.0, 9)[None, :, None, None].expand(3, 8, 25, 2).clone()
    counted[:, [0, 1, 4, 7], :, 1] = 0  # comes late, and with a gap: its frames follow one another
    assert recipes.repeat_bodies(counted)[0, :, 0, 1].tolist() == [3, 4, 6, 7, 3, 4, 6, 7]
    assert torch.equal(recipes.repeat_bodies(counted)[..., 0], counted[..., 0])
    counted[..., 1] = 0
    assert not recipes.repeat_bodies(counted)[..., 1].any()


@pytest.mark.parametrize("length", [1, 39, 40, 100])
def test_the_middle_of_a_clip(length: int) -> None:
    clips = torch.arange(100.0)[None, None, :, None, None].expand(1, 3, 100, 25, 1)
    start = int(0.05 * length / 2)
    found = recipes.center_resize(clips, torch.tensor([length]), 20)
    expected = resize(clips[:, :, start : length - start], torch.tensor([length - 2 * start]), 20)
    torch.testing.assert_close(found, expected)


def test_prepared_clips_have_their_frames_or_all(tmp_path: Path) -> None:
    clips = [clip(frames, seed) for seed, frames in enumerate((5, 90, 320))]
    lengths = torch.tensor([5, 90, 320])
    padded, _ = pad(clips)
    found, found_lengths = recipes.prepare(clips, "resize", 16, True)
    assert torch.equal(found, preprocess(padded, lengths, "ntu", 16))
    assert found_lengths.tolist() == [16] * 3
    sampled, _ = recipes.prepare(clips, "sds_cl", 16, True)
    assert torch.equal(sampled, uniform_frames(recipes.sds_cl(padded), lengths, 16, last=False))
    cropped, _ = recipes.prepare(clips, "std_cl", 16, True)
    assert torch.equal(cropped, recipes.center_resize(recipes.std_cl(padded), lengths, 16))
    for name in ("resize", *recipes.RECIPES):
        whole, whole_lengths = recipes.prepare(clips, name, None, True)
        assert whole.shape == (3, 3, 300, 25, 2)
        assert whole_lengths.tolist() == [5, 90, 300]
        assert not whole[0, :, 5:].any() and whole[0, :, :5].any()


def test_an_unknown_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="recipe: expected one of resize, scd_net, sds_cl, std_cl, got 'agcn'"):
        ntu.load(tmp_path, recipe="agcn")
