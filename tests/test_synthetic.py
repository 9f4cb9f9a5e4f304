import functools
import time

import numpy as np
import pytest
import torch

from skelops.data import synthetic
from skelops.data.motions import CURVES, ONE_BODY, STANCES, TWO_BODY
from skelops.data.transforms import bone_stream
from skelops.graphs import get_layout

NTU = get_layout("ntu")


@functools.cache
def clean(**arguments):
    return synthetic.load(**{"clips_per_class": 20, "frames": 32, "noise": 0, "occlusion": 0} | arguments)


def of_class(data, name):
    return data.clips[data.labels == data.class_names.index(name)]


def test_shape_labels_and_names():
    data = synthetic.load(clips_per_class=3, frames=16)
    assert data.clips.shape == (45, 3, 16, 25, 2)
    assert data.clips.dtype == torch.float32
    assert torch.isfinite(data.clips).all()
    assert data.labels.bincount().tolist() == [3] * 15
    assert (data.num_classes, data.layout, len(set(data.class_names))) == (15, "ntu", 15)
    assert (len(synthetic.load(frames=8)), len(synthetic.load("test", frames=8))) == (1500, 600)
    assert not data.clips[:, :, :, 20].any(), "centred on joint 21"


def test_second_body_is_there_for_two_body_classes_alone():
    data = synthetic.load(clips_per_class=4, frames=16)
    two = torch.tensor([data.class_names[label] in TWO_BODY for label in data.labels])
    assert two.sum() == 12
    assert data.clips[..., 0].flatten(1).any(1).all()
    assert torch.equal(data.clips[..., 1].flatten(1).any(1), two)


def test_seed_and_split_decide_everything():
    first = synthetic.load(clips_per_class=2, frames=16, seed=5)
    assert torch.equal(synthetic.load(clips_per_class=2, frames=16, seed=5).clips, first.clips)
    assert not torch.equal(synthetic.load(clips_per_class=2, frames=16, seed=6).clips, first.clips)
    assert not torch.equal(synthetic.load("test", clips_per_class=2, frames=16, seed=5).clips, first.clips)


def test_bones_are_rigid_and_symmetric_without_noise():
    lengths = bone_stream(clean().clips, NTU).norm(dim=1)
    torch.testing.assert_close(lengths, lengths[:, :1].expand_as(lengths), atol=1e-4, rtol=0)
    torch.testing.assert_close(lengths[:, 0, [4, 5, 6, 12, 13, 14]], lengths[:, 0, [8, 9, 10, 16, 17, 18]],
                               atol=1e-4, rtol=0)  # fmt: skip
    heights = lengths[:, 0, [1, 13, 14], 0].sum(1)
    assert heights.max() > 1.2 * heights.min(), "subjects differ in size"


def test_people_stand_upright_and_limbs_bend_the_right_way():
    clips = of_class(clean(), "drink")[..., 0]
    assert (clips[:, 1, :, 3] > clips[:, 1, :, [13, 17]].amax(2)).all(), "head above the knees"
    across = clips[:, :, :, 8] - clips[:, :, :, 4]
    face = torch.stack([across[:, 2], torch.zeros_like(across[:, 0]), -across[:, 0]], 1)
    for knee in (13, 17):
        bend = clips[:, :, :, knee] - (clips[:, :, :, knee - 1] + clips[:, :, :, knee + 1]) / 2
        assert (bend * face).sum(1).mean() > 0, "knees bend forward"
        toes = clips[:, :, :, knee + 2] - clips[:, :, :, knee + 1]
        assert ((toes * face).sum(1) > 0).float().mean() > 0.8, "feet point forward"
    to_mouth = (clips[:, :, :, [7, 11]] - clips[:, :, :, 3, None]).norm(dim=1).amin(2)
    assert (to_mouth.amin(1) < 0.4).float().mean() > 0.8, "the hand comes to the head"
    assert (to_mouth[:, 0] > 0.4).float().mean() > 0.8, "and was elsewhere before"


def test_two_bodies_face_each_other():
    for name in TWO_BODY:
        clips = of_class(clean(), name)
        across = (clips[:, :, 0, 8] - clips[:, :, 0, 4])[:, [0, 2]]
        cosine = torch.nn.functional.cosine_similarity(across[..., 0], across[..., 1], dim=1)
        assert cosine.max() < -0.7


@pytest.mark.parametrize(
    ("name", "joints", "others"),
    [("wave", [7, 11], [15, 19]), ("kick", [15, 19], [3]), ("bow", [7, 11], [1]), ("clap", [7, 11], [0])],
)
def test_the_acting_joints_move_most(name, joints, others):
    travel = of_class(clean(), name)[..., 0].diff(dim=2).norm(dim=1).sum(1)
    assert (travel[:, joints].amax(1) > 1.5 * travel[:, others].amax(1)).float().mean() > 0.8


def test_both_hands_act():
    wave = of_class(clean(clips_per_class=60), "wave")[..., 0].diff(dim=2).norm(dim=1).sum(1)
    left_share = (wave[:, 7] > wave[:, 11]).float().mean()
    assert 0.2 < left_share < 0.6


def test_cameras_differ_between_the_splits():
    def yaw(split):
        clips = clean(split=split, clips_per_class=60).clips[: 60 * len(ONE_BODY), :, 0, :, 0]
        across = clips[:, :, 8] - clips[:, :, 4]
        return torch.rad2deg(torch.atan2(-across[:, 2], across[:, 0]))

    train, test = yaw("train"), yaw("test")
    assert train.abs().max() < 120
    assert (train.abs() > 40).float().mean() > 0.2
    assert (test.abs() > 60).float().mean() < 0.02
    aligned = clean(align=True).clips[..., 0]
    assert (aligned[:, 2, :, 8] - aligned[:, 2, :, 4]).abs().max() < 1e-5


def test_noise_and_occlusion():
    still, noisy = clean(), clean(noise=0.02)
    difference = (noisy.clips - still.clips)[..., 0]
    joints = [v for v in range(25) if v != 20]
    # The centre's own noise is subtracted from every other joint.
    assert abs(difference[:, :, :, joints].std().item() - 0.02 * 2**0.5) < 0.002
    hidden = clean(occlusion=1.0)
    touched = ((hidden.clips - still.clips)[..., 0].abs() > 1e-6).any(1).any(1)
    parts = [set(part) for part in NTU.parts[1:]]
    frozen = [set(row.nonzero().flatten().tolist()) for row in touched if 0 < row.sum() < 20]
    assert len(frozen) > 60
    assert all(any(joints <= part for part in parts) for joints in frozen)


def test_a_set_is_made_in_seconds():
    start = time.process_time()
    data = synthetic.load(clips_per_class=134)
    assert len(data) == 2010
    assert time.process_time() - start < 60


def test_motion_tables():
    assert len(ONE_BODY) + len(TWO_BODY) == len(synthetic.CLASS_NAMES)
    groups = [*ONE_BODY.values(), *(moves for pair in TWO_BODY.values() for moves in pair), *STANCES]
    for move in (move for group in groups for move in group):
        assert move.curve in CURVES
        assert move.joint in synthetic._ROWS
        assert move.axis in ("x", "y", "z")
    u = np.linspace(0, 1, 50)[None]
    for name, curve in CURVES.items():
        values = curve(u, u, np.full((1, 1), 3.0), np.zeros((1, 1)))
        assert values.shape == u.shape
        assert np.abs(values).max() <= 1
        if not name.startswith(("always", "step")):
            assert np.abs(values[:, [0, -1]]).max() < 1e-6, "rest before and after"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split: expected train or test, got 'val'"),
        ({"clips_per_class": 0}, "clips_per_class: expected at least 1, got 0"),
        ({"frames": 4}, "frames: expected at least 8, got 4"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"noise": -0.1}, "noise: expected at least 0"),
        ({"noise": float("nan")}, "noise: expected at least 0"),
        ({"occlusion": 1.5}, "occlusion: expected a probability, got 1.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic.load(**arguments)
