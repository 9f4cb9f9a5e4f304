"""PKU-MMD: tiny recordings in the released format, their splits, and what is wrong with files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from skelops.data import pku_mmd
from skelops.data.transforms import preprocess

SPLIT = "Training videos: \n{train}, \n\nValidataion videos: \n{test}, \n"
ACTIONS = {
    "0002-L": [(1, 2, 9, 2), (51, 10, 18, 1)],
    "0002-M": [(1, 0, 6, 2)],
    "0003-L": [(7, 4, 100, 2), (12, 1, 3, 2)],
}


def write_recording(folder: Path, name: str, bodies: np.ndarray, actions: Sequence[tuple[int, ...]]) -> None:
    """Bodies (T, 2, 25, 3)."""
    for part in ("skeleton", "label"):
        (folder / part).mkdir(exist_ok=True, parents=True)
    lines = (" ".join(f"{value:.9g}" for value in frame.ravel()) for frame in bodies)
    (folder / "skeleton" / f"{name}.txt").write_text("".join(f"{line} \r\n" for line in lines))
    (folder / "label" / f"{name}.txt").write_text("".join(",".join(map(str, action)) + "\n" for action in actions))


def recording(frames: int = 20, seed: int = 0) -> np.ndarray:
    """One body in all frames but the first, a second one from frame 10."""
    bodies = np.random.default_rng(seed).normal(0, 1, (frames, 2, 25, 3)).astype(np.float32)
    bodies[:10, 1] = bodies[0] = 0
    return bodies


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pku"
    for seed, (name, actions) in enumerate(ACTIONS.items()):
        write_recording(folder, name, recording(seed=seed), actions)
    (folder / "cross_subject.txt").write_text(SPLIT.format(train="0002-L, 0002-M", test="0003-L"))
    (folder / "cross-view.txt").write_text(SPLIT.format(train="0002-M", test="0002-L, 0003-L"))
    (folder / "cross_subject_v2.txt").write_text(SPLIT.format(train="0003-L", test="0002-M"))
    return folder


@pytest.mark.parametrize(
    ("name", "split", "labels"),
    [
        ("pku1_xsub", "train", [0, 50, 0]),
        ("pku1_xsub", "test", [6, 11]),
        ("pku1_xview", "test", [0, 50, 6, 11]),
        ("pku2_xsub", "train", [6, 11]),
        ("pku2_xsub", "test", [0]),
    ],
)
def test_load(folder: Path, tmp_path: Path, name: str, split: str, labels: list[int]) -> None:
    data = pku_mmd.load(folder, name, split, frames=16, cache=tmp_path / "cache")
    assert data.clips.shape == (len(labels), 3, 16, 25, 2)
    assert data.labels.tolist() == labels
    assert (data.layout, data.num_classes) == ("ntu", 51)
    assert not data.clips[:, :, :, 20].any(), "centred on joint 21"
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_clip_is_the_frames_of_its_action(folder: Path, tmp_path: Path) -> None:
    data = pku_mmd.load(folder, frames=8, cache=tmp_path)
    raw = torch.from_numpy(recording(seed=0)[10:18]).permute(3, 0, 2, 1)[None]
    assert torch.equal(data.clips[1], preprocess(raw, torch.tensor([8]), "ntu", 8)[0])
    # One body before frame 10, two after it.
    assert [bool(clip[..., 1].any()) for clip in data.clips] == [False, True, False]
    # Frame 0 has no body and is left out.
    raw = torch.from_numpy(recording(seed=1)[1:6]).permute(3, 0, 2, 1)[None]
    assert torch.equal(data.clips[2], preprocess(raw, torch.tensor([5]), "ntu", 8)[0])
    # An end past the last frame is the last frame.
    test = pku_mmd.load(folder, split="test", frames=8, align=False, cache=tmp_path)
    raw = torch.from_numpy(recording(seed=2)[4:]).permute(3, 0, 2, 1)[None]
    assert torch.equal(test.clips[0], preprocess(raw, torch.tensor([16]), "ntu", 8, align=False)[0])


@pytest.mark.parametrize("recipe", ["resize", "sds_cl"])
def test_whole_clips_have_lengths(folder: Path, tmp_path: Path, recipe: str) -> None:
    (folder / "label" / "0002-M.txt").write_text("1,0,1,2\n4,2,5,2\n")
    with pytest.warns(UserWarning, match="left out 1 of 4 actions, which show no body"):
        data = pku_mmd.load(folder, frames=None, recipe=recipe, cache=tmp_path)
    assert data.clips.shape == (3, 3, 300, 25, 2)
    assert data.lengths.tolist() == [7, 8, 3]
    assert data.labels.tolist() == [0, 50, 3]


def test_files_are_read_once_and_anew_when_they_change(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pku_mmd.load(folder, frames=8, cache=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(pku_mmd, "read_skeleton", lambda path: pytest.fail("the cache was not used"))
        assert torch.equal(pku_mmd.load(folder, frames=8, cache=tmp_path / "cache").clips, first.clips)
        pku_mmd.load(folder, "pku1_xview", "test", frames=8, cache=tmp_path / "cache")
    (folder / "label" / "0002-M.txt").write_text("1,3,6,2\n")
    changed = pku_mmd.load(folder, frames=8, cache=tmp_path / "cache")
    assert torch.equal(changed.clips[:2], first.clips[:2])
    assert not torch.equal(changed.clips[2], first.clips[2])


def test_actions_without_a_body_are_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "label" / "0002-M.txt").write_text("1,0,1,2\n3,25,30,1\n4,2,5,2\n")
    for _ in range(2):
        with pytest.warns(UserWarning, match="left out 2 of 5 actions, which show no body"):
            data = pku_mmd.load(folder, frames=8, cache=tmp_path)
        assert data.labels.tolist() == [0, 50, 3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (" ".join(["0.5"] * 149), "line 3: expected 150 numbers, got 149"),
        (" ".join(["0.5"] * 149 + ["x"]), "line 3: could not convert string to float: 'x'"),
        (" ".join(["0.5"] * 149 + ["nan"]), "line 3: expected finite numbers"),
        ("", "line 3: expected 150 numbers, got 0"),
    ],
    ids=["short", "word", "nan", "empty"],
)
def test_malformed_recordings(folder: Path, tmp_path: Path, line: str, message: str) -> None:
    path = folder / "skeleton" / "0002-M.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(ValueError, match=f"0002-M.txt: {message}"):
        pku_mmd.load(folder, frames=8, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir()), "no file may be left of a failed reading"


@pytest.mark.parametrize("line", ["1,2", "52,0,4,1", "0,0,4,1", "1,5,4,1", "1,-1,4,1", "a,0,4,1", "1,0,4,1,9", " "])
def test_malformed_labels(folder: Path, tmp_path: Path, line: str) -> None:
    (folder / "label" / "0002-M.txt").write_text(f"1,0,6,2\n{line}\n2,0,6,2\n")
    with pytest.raises(ValueError, match=r"label.0002-M.txt: line 2: expected action \(1 to 51\),start,end,confidence"):
        pku_mmd.load(folder, frames=8, cache=tmp_path / "cache")


def test_other_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="benchmark: expected one of pku1_xsub, .*, got 'xsub'"):
        pku_mmd.load(folder, "xsub", cache=tmp_path)
    with pytest.raises(ValueError, match="split: expected train or test, got 'val'"):
        pku_mmd.load(folder, split="val", cache=tmp_path)
    with pytest.raises(ValueError, match=r"folder: expected cross_view_v2\.txt, found none in"):
        pku_mmd.load(folder, "pku2_xview", cache=tmp_path)
    (folder / "skeleton" / "0002-M.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"0002-M\.txt: expected a line per frame, found none"):
        pku_mmd.load(folder, frames=8, cache=tmp_path)
    (folder / "skeleton" / "0002-M.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"0002-M\.txt: expected a readable text file"):
        pku_mmd.load(folder, frames=8, cache=tmp_path)
    (folder / "skeleton" / "0002-M.txt").unlink()
    with pytest.raises(ValueError, match=r"folder: expected .*0002-M\.txt, which is listed in a split, found none"):
        pku_mmd.load(folder, cache=tmp_path)
    (folder / "label" / "0002-L.txt").unlink()
    write_recording(folder, "0002-M", recording(), [(1, 0, 6, 2)])
    with pytest.raises(ValueError, match=r"label.0002-L\.txt: expected a readable text file"):
        pku_mmd.load(folder, cache=tmp_path)
    (folder / "cross_subject.txt").write_text("0002-L, 0002-M\n")
    with pytest.raises(ValueError, match=r"cross_subject\.txt: expected two lists of names"):
        pku_mmd.load(folder, cache=tmp_path)
