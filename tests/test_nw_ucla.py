import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from skelops.data import nw_ucla
from skelops.data.cache import new_array

REAL = os.environ.get("SKELOPS_NW_UCLA")


def write(folder, name, joints, **changes):
    label = nw_ucla.ACTIONS.index(int(name[1:3])) + 1
    content = {"file_name": name, "skeletons": np.asarray(joints).tolist(), "label": label} | changes
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def joints(frames, seed=0):
    return np.random.default_rng(seed).normal(size=(frames, 20, 3)).round(6)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for seed, name in enumerate(["a01_s01_e00_v01", "a01_s01_e00_v03", "a08_s02_e00_v02", "a12_s01_e03_v01"]):
        write(folder, name, joints(1 + 7 * seed, seed))
    (folder / "notes.txt").write_text("other files do not matter")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SKELOPS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_raw_clips(folder):
    data = nw_ucla.NWUCLA(folder)
    assert data.names == ["a01_s01_e00_v01", "a08_s02_e00_v02", "a12_s01_e03_v01"]
    assert data.labels == [0, 6, 9]
    for index, (seed, frames) in enumerate([(0, 1), (2, 15), (3, 22)]):
        clip, label, position = data[index]
        assert clip.shape == (3, frames, 20, 1)
        assert clip.dtype == torch.float32
        assert clip.is_contiguous()
        assert (label, position) == (data.labels[index], index)
        np.testing.assert_array_equal(clip[..., 0].permute(1, 2, 0), joints(frames, seed).astype(np.float32))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"split": "test"}, ["a01_s01_e00_v03"]),
        ({"split": None, "subjects": [1]}, ["a01_s01_e00_v01", "a01_s01_e00_v03", "a12_s01_e03_v01"]),
        ({"subjects": [2]}, ["a08_s02_e00_v02"]),
        ({"views": (2, 3)}, ["a01_s01_e00_v03", "a08_s02_e00_v02"]),
    ],
)
def test_choice_of_views_and_subjects(folder, arguments, names):
    assert nw_ucla.NWUCLA(folder, **arguments).names == names


def test_load(folder):
    data = nw_ucla.load(folder, frames=32)
    assert data.clips.shape == (3, 3, 32, 20, 1)
    assert (data.num_classes, data.layout, len(data)) == (10, "nw_ucla", 3)
    assert not data.clips[:, :, :, 2].any(), "centred on the shoulder centre"
    assert (data.clips[0] - data.clips[0, :, :1]).abs().max() < 1e-6, "a one-frame clip is repeated"
    clips, labels, index, length = next(iter(DataLoader(data, batch_size=2)))
    assert clips.shape[0] == len(labels) == len(index) == len(length) == 2


def test_load_as_ctr_gcn_does(folder):
    """The feeder of CTR-GCN for test clips, in numpy, clip by clip."""
    raw = nw_ucla.NWUCLA(folder)
    data = nw_ucla.load(folder, frames=52, recipe="ctr_gcn")
    for index in range(len(raw)):
        value = raw[index][0][..., 0].permute(1, 2, 0).double().numpy()
        value = value - value[0, 1]
        points = value.reshape(-1, 3)
        points = (points - points.min(0)) / (points.max(0) - points.min(0)) * 2 - 1
        value = points.reshape(-1, 20, 3)
        chosen = value[(np.linspace(0, len(value) - 1, 52) + 1e-9).astype(int)]
        np.testing.assert_allclose(data.clips[index, ..., 0], chosen.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("recipe", ["resize", "ctr_gcn"])
def test_whole_clips(folder, recipe):
    raw = nw_ucla.NWUCLA(folder)
    data = nw_ucla.load(folder, frames=None, recipe=recipe, **({"align": False} if recipe == "resize" else {}))
    assert data.lengths.tolist() == [raw[index][0].shape[1] for index in range(len(raw))]
    for index, length in enumerate(data.lengths):
        clip, found = raw[index][0], data.clips[index]
        origin = clip[:, :, 2:3] if recipe == "resize" else clip[:, :1, 1:2]
        torch.testing.assert_close(found[:, :length], clip - origin)
        assert not found[:, length:].any()


def test_the_folder_is_read_once_and_anew_when_it_changes(folder, cache, monkeypatch):
    first = nw_ucla.NWUCLA(folder)
    assert [path.suffix for path in cache.iterdir()] == [".npy"]
    with monkeypatch.context() as patch:
        patch.setattr(nw_ucla, "read_clip", lambda _: pytest.fail("the cache was not used"))
        assert torch.equal(nw_ucla.NWUCLA(folder)[1][0], first[1][0])
        nw_ucla.NWUCLA(folder, "test")
    path = write(folder, "a08_s02_e00_v02", joints(15, 99))
    os.utime(path, ns=(1, 1))
    assert not torch.equal(nw_ucla.NWUCLA(folder)[1][0], first[1][0])


def test_cache_is_memory_mapped_and_rewritten_when_cut_short(folder, cache):
    first = nw_ucla.NWUCLA(folder)[0][0]
    (path,) = cache.iterdir()
    assert np.load(path, mmap_mode="r", allow_pickle=False)["joints"].shape == (1 + 8 + 15 + 22, 20, 3)
    path.write_bytes(path.read_bytes()[:-1000])
    assert torch.equal(nw_ucla.NWUCLA(folder)[0][0], first)
    path.write_bytes(b"")
    assert torch.equal(nw_ucla.NWUCLA(folder)[0][0], first)
    assert list(cache.iterdir()) == [path]


def test_cache_of_another_format_or_content_is_written_anew(folder, cache, monkeypatch):
    first = nw_ucla.NWUCLA(folder)[0][0]
    (path,) = cache.iterdir()
    np.save(path, np.zeros(7))
    assert torch.equal(nw_ucla.NWUCLA(folder)[0][0], first)
    monkeypatch.setattr(nw_ucla, "FORMAT", nw_ucla.FORMAT + 1)
    nw_ucla.NWUCLA(folder)
    assert len([*cache.iterdir()]) == 2


def test_cache_files_have_the_mode_of_any_new_file(folder, cache):
    before = os.umask(0o027)
    try:
        nw_ucla.NWUCLA(folder)
    finally:
        os.umask(before)
    (path,) = cache.iterdir()
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_array_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "array.npy"

    def fail():
        with new_array(path, (3,), np.float32) as array:
            array[:] = 1
            assert not path.exists()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


GOOD = joints(3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "broken JSON"),
        ('{"skeletons": [[[0, 1', "broken JSON"),
        (b"\xff\xfe\x00", "broken JSON"),
        ("[" * 100_000, "broken JSON"),
        ("[]", "expected a JSON object, got list"),
        ("{}", 'non-empty list under "skeletons"'),
        ({"skeletons": []}, 'non-empty list under "skeletons"'),
        ({"skeletons": GOOD[:, :19].tolist()}, "frame 0: expected 20 joints x 3 numbers"),
        ({"skeletons": [*GOOD.tolist(), GOOD[0, :19].tolist()]}, "frame 3: expected 20 joints x 3 numbers"),
        ({"skeletons": [GOOD[0].tolist(), [1.0]]}, "frame 1: expected 20 joints"),
        ({"skeletons": [GOOD[0].tolist(), [[1, 2], *GOOD[0, 1:].tolist()]]}, "frame 1: expected 20 joints"),
        ({"skeletons": [[["1", "2", "3"]] * 20]}, "frame 0: expected 20 joints x 3 numbers"),
        ({"skeletons": [[[None, 1, 2]] * 20]}, "frame 0: expected 20 joints x 3 numbers"),
        ({"skeletons": [[[True, False, True]] * 20]}, "frame 0: expected 20 joints x 3 numbers"),
        ({"skeletons": [[[10**400, 1, 2]] * 20]}, "frame 0: expected 20 joints x 3 numbers"),
        ({"skeletons": [GOOD[0].tolist(), np.full((20, 3), np.inf).tolist()]}, "frame 1: infinite"),
        ({"skeletons": [[[1e200, 1, 2]] * 20]}, "frame 0: infinite"),
        ({"skeletons": [[[float("nan"), 1, 2]] * 20] * 2}, "joint 0 is tracked in no frame"),
        ({"skeletons": np.zeros((1, 20, 3)).tolist()}, "joint 0 is tracked in no frame"),
        ({"skeletons": GOOD.tolist(), "label": 2}, "label 2 contradicts"),
    ],
)
def test_bad_files_are_named_or_skipped(folder, content, message):
    bad = folder / "a01_s01_e01_v01.json"
    data = content if isinstance(content, str | bytes) else json.dumps(content)
    bad.write_bytes(data.encode() if isinstance(data, str) else data)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(ValueError, match=message) as caught:
            nw_ucla.NWUCLA(folder)
        assert str(caught.value).startswith(str(bad))
        with pytest.warns(UserWarning, match="skipped 1 of 5 files") as warned:
            data_set = nw_ucla.NWUCLA(folder, on_error="skip")
        assert str(bad) in str(warned[0].message)
        assert data_set.names == ["a01_s01_e00_v01", "a08_s02_e00_v02", "a12_s01_e03_v01"]
        torch.testing.assert_close(data_set[1][0][..., 0].permute(1, 2, 0), torch.tensor(joints(15, 2)).float())


@pytest.mark.parametrize("name", ["a07_s01_e00_v01.json", "a1_s01_e00_v01.json", "labels.json"])
def test_odd_file_names(folder, name):
    (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=rf"{name}: expected a name aAA_sSS_eEE_vVV\.json"):
        nw_ucla.load(folder)


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_untracked_joints_are_interpolated_over_time(folder, value):
    clip = np.stack([np.full((20, 3), float(t + 1)) for t in range(5)])
    broken = clip.copy()
    broken[0, 3] = broken[2, 7] = broken[3, 7] = value
    path = write(folder, "a02_s01_e00_v01", broken)
    repaired, was_repaired = nw_ucla.read_clip(path)
    assert was_repaired
    clip[0, 3] = 2
    np.testing.assert_allclose(repaired, clip)
    assert nw_ucla.read_clip(folder / "a01_s01_e00_v01.json")[1] is False
    with pytest.warns(UserWarning, match=r"interpolated over time in a02_s01_e00_v01\.json"):
        nw_ucla.NWUCLA(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nw_ucla.NWUCLA(folder)


def test_bad_arguments(folder, tmp_path):
    with pytest.raises(ValueError, match="split: expected train, test or None, got 'val'"):
        nw_ucla.load(folder, "val")
    with pytest.raises(ValueError, match="recipe: expected resize or ctr_gcn, got 'crop'"):
        nw_ucla.load(folder, recipe="crop")
    with pytest.raises(ValueError, match="on_error: expected raise or skip, got 'ignore'"):
        nw_ucla.load(folder, on_error="ignore")
    with pytest.raises(ValueError, match="folder: expected a folder of JSON files"):
        nw_ucla.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no clip of views \[3\] and subjects \[2\]"):
        nw_ucla.load(folder, views=[3], subjects=[2])


@pytest.mark.skipif(not REAL, reason="SKELOPS_NW_UCLA does not name the folder of the real set")
@pytest.mark.filterwarnings("ignore:untracked joints")
class TestRealSet:
    def test_published_sizes_and_shapes(self):
        with pytest.warns(UserWarning, match=r"a04_s01_e01_v01\.json, a04_s04_e02_v01\.json"):
            train = nw_ucla.load(REAL)
        test = nw_ucla.load(REAL, "test")
        assert (len(train), len(test)) == (1020, 464)
        assert train.clips.shape[1:] == (3, 64, 20, 1)
        for data in (train, test):
            assert torch.isfinite(data.clips).all()
            assert data.labels.unique().tolist() == list(range(10))
            assert data.clips.abs().max() < 3, "metres from the shoulder centre"
            across = data.clips[:, :, :, 8, 0] - data.clips[:, :, :, 4, 0]
            assert across[:, 2].abs().max() < 1e-4
            assert (across[:, 0] >= 0).all()

    def test_one_frame_clips(self):
        raw = nw_ucla.NWUCLA(REAL, "test")
        data = nw_ucla.load(REAL, "test")
        index = raw.names.index("a02_s09_e04_v03")
        assert raw[index][0].shape == (3, 1, 20, 1)
        assert torch.equal(data.clips[index], data.clips[index, :, :1].expand(-1, 64, -1, -1))

    def test_raw_values_are_those_of_the_file(self):
        raw = nw_ucla.NWUCLA(REAL, "test")
        for index in (0, 100, 463):
            content = json.loads((Path(REAL) / f"{raw.names[index]}.json").read_text())
            expected = torch.tensor(content["skeletons"]).permute(2, 0, 1)[..., None]
            assert torch.equal(raw[index][0], expected)
            assert raw[index][1] == content["label"] - 1
