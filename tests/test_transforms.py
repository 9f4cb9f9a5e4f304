import pytest
import torch
from torch.nn.functional import interpolate

from skelops.data import SkeletonDataset, transforms
from skelops.graphs import LAYOUTS, get_layout

NTU = get_layout("ntu")


def clips(n=4, frames=12, joints=25, bodies=2, channels=3):
    result = torch.randn(n, channels, frames, joints, bodies)
    if bodies > 1:
        result[0, ..., 1] = 0
    return result


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


ABSENT_STAYS_ABSENT = {
    "center": lambda x: transforms.center(x, "ntu"),
    "center_start": lambda x: transforms.center_start(x, 1),
    "unit_box": transforms.unit_box,
    "uniform_frames": lambda x: transforms.uniform_frames(x, torch.tensor([12, 5, 1, 7]), 9),
    "random_frames": lambda x: transforms.random_frames(x, torch.tensor([12, 5, 1, 7]), 9, seeded()),
    "without replacement": lambda x: transforms.random_frames(x, torch.tensor([12, 5, 1, 7]), 9, seeded(), False),
    "align_shoulders": lambda x: transforms.align_shoulders(x, "ntu"),
    "normalize_scale": lambda x: transforms.normalize_scale(x, "ntu"),
    "resize": lambda x: transforms.resize(x, torch.tensor([12, 5, 1, 7]), 9),
    "preprocess": lambda x: transforms.preprocess(x, torch.tensor([12, 5, 1, 7]), "ntu", 9, scale=True),
    "random_crop": lambda x: transforms.random_crop(x, seeded()),
    "random_shear": lambda x: transforms.random_shear(x, seeded()),
    "bone_stream": lambda x: transforms.bone_stream(x, "ntu"),
    "motion_stream": transforms.motion_stream,
}


@pytest.mark.parametrize("name", ABSENT_STAYS_ABSENT)
def test_absent_body_stays_zero_and_the_input_is_left_alone(name):
    x = clips()
    before = x.clone()
    result = ABSENT_STAYS_ABSENT[name](x)
    assert torch.equal(x, before)
    assert torch.isfinite(result).all()
    assert not result[0, ..., 1].any()
    assert result[0, ..., 0].any()
    assert result.dtype == x.dtype
    assert ABSENT_STAYS_ABSENT[name](torch.zeros_like(x)).count_nonzero() == 0
    assert ABSENT_STAYS_ABSENT[name](x.double()).dtype == torch.float64


def test_pad():
    batch, lengths = transforms.pad([torch.ones(3, t, 20, 1) for t in (1, 4, 2)])
    assert batch.shape == (3, 3, 4, 20, 1)
    assert lengths.tolist() == [1, 4, 2]
    assert batch.sum((1, 2, 3, 4)).tolist() == [60, 240, 120]
    with pytest.raises(ValueError, match="at least one"):
        transforms.pad([])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_center(layout):
    x = clips(joints=LAYOUTS[layout].num_joints)
    result = transforms.center(x, layout)
    joint = LAYOUTS[layout].center
    torch.testing.assert_close(result, x - x[:, :, :, joint : joint + 1])


def test_center_start_keeps_the_way_and_the_padding():
    x = clips()
    x[1, :, 5:] = 0
    result = transforms.center_start(x, 3)
    assert not result[:, :, 0, 3, 0].any()
    assert not result[1, :, 5:].any()
    torch.testing.assert_close(result[2:].diff(dim=2), x[2:].diff(dim=2))
    torch.testing.assert_close(result[2, ..., 1], x[2, ..., 1] - x[2, :, :1, 3:4, 0])
    with pytest.raises(ValueError, match="joint: expected 0 to 24, got 25"):
        transforms.center_start(x, 25)


def test_unit_box():
    """By axis and clip, over the frames that are there; nothing but the box is lost of scale and place."""
    x = clips()
    x[1, :, 5:] = 0
    result = transforms.unit_box(x)
    expected = torch.zeros_like(x)
    for n, (frames, bodies) in enumerate([(12, 1), (5, 2), (12, 2), (12, 2)]):
        for axis in range(3):
            values = x[n, axis, :frames, :, :bodies]
            scaled = (values - values.min()) / (values.max() - values.min())
            expected[n, axis, :frames, :, :bodies] = scaled * 2 - 1
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(transforms.unit_box(3 * x[2:] + 1), result[2:], atol=1e-5, rtol=1e-5)
    flat = x.clone()
    flat[:, 1] = 0.7
    assert not transforms.unit_box(flat)[:, 1].any()


def test_uniform_frames():
    """As numpy.linspace(0, length - 1, frames), rounded down."""
    x = torch.arange(200.0).view(1, 1, 200, 1, 1).expand(200, 3, -1, 25, 1)
    result = transforms.uniform_frames(x, torch.arange(1, 201), 52)[:, 0, :, 0, 0]
    for length, row in enumerate(result, 1):
        assert row.tolist() == [int(t * (length - 1) / 51 + 1e-9) for t in range(52)]
    assert transforms.uniform_frames(x, torch.full((200,), 7), 1).unique().tolist() == [0]
    spread = transforms.uniform_frames(x, torch.arange(1, 201), 52, last=False)[:, 0, :, 0, 0]
    assert all(row.tolist() == [t * length // 52 for t in range(52)] for length, row in enumerate(spread, 1))


def test_random_frames_are_sorted_valid_and_uniform():
    x = torch.arange(40.0).view(1, 1, 40, 1, 1).expand(3000, 3, -1, 20, 1)
    lengths = torch.tensor([1, 9, 40]).repeat(1000)
    result = transforms.random_frames(x, lengths, 13, seeded())
    assert torch.equal(result, transforms.random_frames(x, lengths, 13, seeded()))
    frames = result[:, 0, :, 0, 0].long()
    assert (frames.diff(dim=1) >= 0).all()
    for length in (1, 9, 40):
        drawn = frames[lengths == length].flatten()
        counts = torch.bincount(drawn, minlength=length)
        assert len(counts) == length
        assert (counts * length / len(drawn) - 1).abs().max() < 0.25
    with pytest.raises(ValueError, match="lengths: expected 1 to 40 frames, got 0 to 40"):
        transforms.random_frames(x[:2], torch.tensor([0, 40]), 5)
    with pytest.raises(ValueError, match="frames: expected at least 1, got 0"):
        transforms.random_frames(x[:1], torch.tensor([4]), 0)


def test_random_frames_without_replacement_are_each_taken_as_often():
    x = torch.arange(40.0).view(1, 1, 40, 1, 1).expand(3000, 3, -1, 20, 1)
    lengths = torch.tensor([1, 5, 13, 40]).repeat(750)
    frames = transforms.random_frames(x, lengths, 13, seeded(), replace=False)[:, 0, :, 0, 0].long()
    assert (frames.diff(dim=1) >= 0).all()
    assert torch.equal(frames[2], torch.arange(13)), "as many as there are: each of them"
    for length in (1, 5, 40):
        drawn = frames[lengths == length]
        times = torch.stack([torch.bincount(row, minlength=length) for row in drawn])
        assert times.shape[1] == length
        assert times.max() <= -(-13 // length), "no frame more often than there are copies"
        assert (times.float().mean(0) * length / 13 - 1).abs().max() < 0.25


def test_align_shoulders_undoes_any_turn_about_the_vertical():
    x = clips()
    x[:, 0, :, 8] = x[:, 0, :, 4] + 0.4
    x[:, 2, :, 8] = x[:, 2, :, 4]
    angle = torch.rand(12, 2) * 6.28
    turned = x.clone()
    turned[:, 0] = angle.cos()[:, None] * x[:, 0] + angle.sin()[:, None] * x[:, 2]
    turned[:, 2] = angle.cos()[:, None] * x[:, 2] - angle.sin()[:, None] * x[:, 0]
    torch.testing.assert_close(transforms.align_shoulders(turned, "ntu"), x, atol=1e-5, rtol=1e-5)


def test_align_shoulders_is_a_rotation_about_y():
    x = clips()
    result = transforms.align_shoulders(x, "ntu")
    across = result[:, :, :, 8] - result[:, :, :, 4]
    assert across[:, 2].abs().max() < 1e-5
    assert (across[:, 0] >= 0).all()
    assert torch.equal(result[:, 1], x[:, 1])
    torch.testing.assert_close(torch.cdist(result[1, :, 0, :, 0].T, result[1, :, 0, :, 0].T),
                               torch.cdist(x[1, :, 0, :, 0].T, x[1, :, 0, :, 0].T))  # fmt: skip


def test_normalize_scale():
    x = clips()
    result = transforms.normalize_scale(x, NTU)
    bones = transforms.bone_stream(result, NTU).norm(dim=1)
    torch.testing.assert_close(bones[1:].sum((1, 2, 3)) / (12 * 24 * 2), torch.ones(3))
    torch.testing.assert_close(bones[0].sum() / (12 * 24), torch.tensor(1.0))
    torch.testing.assert_close(transforms.normalize_scale(1000 * x, NTU), result)


@pytest.mark.parametrize("frames", [1, 7, 12, 64])
@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_resize_is_half_pixel_interpolation(length, frames):
    x = clips().double()
    result = transforms.resize(x, torch.full((4,), length), frames)
    valid = x[:, :, :length].permute(0, 1, 3, 4, 2).flatten(1, 3)
    expected = interpolate(valid, frames, mode="linear", align_corners=False)
    torch.testing.assert_close(result.permute(0, 1, 3, 4, 2).flatten(1, 3), expected)


def test_resize_treats_clips_by_themselves_and_ignores_padding():
    x = clips()
    lengths = torch.tensor([3, 12, 1, 8])
    result = transforms.resize(x, lengths, 6)
    for i, length in enumerate(lengths.tolist()):
        alone = transforms.resize(x[i : i + 1, :, :length], torch.tensor([length]), 6)
        torch.testing.assert_close(result[i : i + 1], alone)
    assert torch.equal(transforms.resize(x, torch.full((4,), 12), 12), x)


@pytest.mark.parametrize("frames", [5, 6, 64])
def test_random_crop_is_a_window_of_the_mirrored_clip(frames):
    x = torch.arange(frames).float().expand(200, 3, 25, 2, frames).permute(0, 1, 4, 2, 3)
    result = transforms.random_crop(x, seeded())
    padding = frames // 6
    padded = [*range(padding - 1, -1, -1), *range(frames), *range(frames - 1, frames - 1 - padding, -1)]
    windows = {tuple(padded[start : start + frames]) for start in range(2 * padding + 1)}
    assert {tuple(int(v) for v in clip) for clip in result[:, 0, :, 0, 0]} == windows


def test_random_shear_is_one_matrix_per_clip_with_unit_diagonal():
    x = clips(n=500, frames=2)
    matrices = torch.linalg.lstsq(
        x.flatten(2).mT, transforms.random_shear(x, seeded(), amplitude=0.3).flatten(2).mT
    ).solution.mT
    off = matrices[:, ~torch.eye(3, dtype=torch.bool)]
    torch.testing.assert_close(matrices.diagonal(dim1=1, dim2=2), torch.ones(500, 3), atol=1e-4, rtol=0)
    assert off.abs().max() <= 0.3001
    assert off.max() > 0.28
    assert off.min() < -0.28
    assert off.mean().abs() < 0.02
    assert (off.std(0) - 0.3 / 3**0.5).abs().max() < 0.02
    torch.testing.assert_close(transforms.random_shear(x, amplitude=0), x)


@pytest.mark.parametrize("name", ["random_crop", "random_shear"])
def test_generators_decide(name):
    x = clips(frames=60)
    transform = getattr(transforms, name)
    assert torch.equal(transform(x, seeded(1)), transform(x, seeded(1)))
    assert not torch.equal(transform(x, seeded(1)), transform(x, seeded(2)))
    torch.manual_seed(3)
    first = transform(x)
    torch.manual_seed(3)
    assert torch.equal(transform(x), first)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_streams(layout):
    x = clips(joints=layout.num_joints, channels=2)
    bones = transforms.bone_stream(x, layout)
    for child, parent in layout.edges:
        assert torch.equal(bones[:, :, :, child], x[:, :, :, child] - x[:, :, :, parent])
    assert not bones[:, :, :, layout.center].any()
    motion = transforms.motion_stream(x)
    assert torch.equal(motion[:, :, :-1], x[:, :, 1:] - x[:, :, :-1])
    assert not motion[:, :, -1].any()
    assert motion.shape == x.shape


def test_non_contiguous_clips():
    x = clips().permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    for transform in ABSENT_STAYS_ABSENT.values():
        torch.testing.assert_close(transform(x), transform(x.contiguous()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transforms.center(clips(joints=20), "ntu"), r"clips: expected shape \(N, C, T, 25, M\), got \(4, 3"),
        (lambda: transforms.align_shoulders(clips(channels=2), "ntu"), r"expected shape \(N, 3, T, 25, M\)"),
        (lambda: transforms.random_shear(clips(channels=2)), r"expected shape \(N, 3, T, V, M\)"),
        (lambda: transforms.random_shear(clips(), amplitude=-1), "amplitude: expected at least 0"),
        (lambda: transforms.random_crop(clips()[0]), r"clips: expected shape \(N, C, T, V, M\)"),
        (lambda: transforms.random_crop(clips(), padding_ratio=0), "padding_ratio: expected at least 1"),
        (lambda: transforms.resize(clips(), torch.tensor([1, 2, 3]), 4), "lengths: expected 4 integers"),
        (lambda: transforms.resize(clips(), torch.ones(4), 4), "lengths: expected 4 integers"),
        (lambda: transforms.resize(clips(), torch.tensor([1, 2, 3, 13]), 4), "expected 1 to 12 frames, got 1 to 13"),
        (lambda: transforms.resize(clips(), torch.tensor([1, 2, 3, 0]), 4), "lengths: expected 1 to 12 .* got 0 to 3"),
        (lambda: transforms.resize(clips(), torch.tensor([1, 2, 3, 4]), 0), "frames: expected at least 1, got 0"),
        (lambda: transforms.bone_stream(clips(), "kinect"), "layout: expected one of"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integer_clips_are_refused():
    with pytest.raises(TypeError, match="clips: expected a floating dtype, got torch.int64"):
        transforms.motion_stream(clips().long())


def test_dataset_checks_that_its_parts_fit():
    good = dict(clips=clips(), labels=torch.tensor([0, 1, 2, 0]), layout="ntu", class_names=("a", "b", "c"))
    data = SkeletonDataset(**good)
    assert (len(data), data.num_classes) == (4, 3)
    clip, label, index, length = data[2]
    assert torch.equal(clip, good["clips"][2])
    assert (label, index, length) == (2, 2, 12)
    assert SkeletonDataset(**good, lengths=torch.tensor([3, 1, 12, 4]))[1][3] == 1
    for changes, message in [
        ({"clips": clips(joints=20)}, r"clips: expected shape \(N, 3, T, 25, M\)"),
        ({"clips": clips().double()}, "clips: expected float32"),
        ({"labels": torch.tensor([0, 1, 2])}, r"labels: expected \(4,\) of int64"),
        ({"labels": torch.zeros(4)}, r"labels: expected \(4,\) of int64"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, "labels: expected 0 to 2, got 0 to 3"),
        ({"layout": "kinect"}, "layout: expected one of"),
        ({"lengths": torch.tensor([1, 2])}, r"lengths: expected \(4,\) of int64"),
        ({"lengths": torch.tensor([1, 2, 0, 3])}, "lengths: expected 1 to 12 frames, got 0 to 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            SkeletonDataset(**good | changes)
