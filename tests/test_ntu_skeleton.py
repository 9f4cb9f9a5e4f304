import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ntu_writer import FIRST_ID, random_frames, skeleton_text, write_recording

from skelops.data import ntu
from skelops.data.bodies import main_bodies, standing_bodies

pytest.importorskip("skelops.lib._io", reason="the .skeleton parser is not built")

FRAMES = random_frames(4, [range(4), range(1, 3)])
TEXT = skeleton_text(FRAMES)


def check(recording, frames, rtol=1e-6):
    joints, present = recording.dense()
    assert recording.num_frames == len(frames) == len(joints)
    assert present.sum() == sum(map(len, frames)) == len(recording.joints)
    assert not joints[~present].any()
    index = {body: i for i, body in enumerate(recording.ids.tolist())}
    for frame, bodies in enumerate(frames):
        assert present[frame].sum() == len(bodies)
        for body, expected in bodies:
            np.testing.assert_allclose(joints[frame, index[body]], expected, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("fields", [11, 12])
@pytest.mark.parametrize("newline", ["\n", "\r\n", " \t\r\n"])
def test_reads_what_the_writer_wrote(fields, newline):
    recording = ntu.parse(skeleton_text(FRAMES, fields, newline).encode())
    check(recording, FRAMES)
    assert recording.ids.tolist() == [FIRST_ID, FIRST_ID + 1]
    assert recording.joints.dtype == np.float32
    assert (recording.frames.dtype, recording.bodies.dtype, recording.ids.dtype) == (np.int32, np.int32, np.uint64)
    recording.joints[0] = 0  # the arrays are the caller's own


def test_agrees_with_float_on_every_spelling_of_a_number():
    line = " ".join(["-1.5e-3", "+2", ".25"] + ["NaN"] * 8)
    recording = ntu.parse(f"1\n1\n1 0 0 0 0 0 0 0 0 2\n25\n{(line + chr(10)) * 25}".encode())
    np.testing.assert_array_equal(recording.joints[0], np.tile(np.float32([-1.5e-3, 2, 0.25]), (25, 1)))


def test_gaps_late_bodies_and_returning_ids():
    frames = random_frames(9, [range(0, 3), range(5, 9), range(2, 7)])
    frames[8].append((FIRST_ID, frames[0][0][1]))
    recording = ntu.parse(skeleton_text(frames).encode())
    check(recording, frames)
    assert recording.ids.tolist() == [FIRST_ID, FIRST_ID + 2, FIRST_ID + 1]


def test_one_id_twice_in_a_frame_is_two_bodies():
    first, second = FRAMES[0][0][1], FRAMES[1][0][1]
    recording = ntu.parse(skeleton_text([[(7, first), (7, second)], [(7, second)]]).encode())
    assert recording.ids.tolist() == [7, 7]
    assert recording.bodies.tolist() == [0, 1, 0]


@pytest.mark.parametrize(("text", "frames"), [("0\r\n", 0), ("0", 0), ("3\n0\n0\n0\n", 3), ("1\n0\n\n \n", 1)])
def test_recordings_without_bodies(text, frames):
    recording = ntu.parse(text.encode())
    joints, present = recording.dense()
    assert joints.shape == (frames, 0, 25, 3)
    assert present.shape == (frames, 0)


def with_line(number, text):
    lines = TEXT.split("\r\n")
    lines[number - 1] = text
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: file ends, expected the number of frames"),
        ("x", "line 1: expected the number of frames"),
        ("-1", "line 1: .*negative"),
        ("1e3", "line 1: expected the number of frames"),
        ("99999999999999999999", "line 1: expected the number of frames"),
        ("3000000000", "line 1: .*more than"),
        ("1000000000", "line 2: file ends, expected the number of bodies"),
        ("1\n1000000000", "line 3: file ends, expected a body line"),
        ("2 2\n0\n0\n", "line 1: expected nothing after"),
        ("1\n0\n0\n", "line 3: expected the end of the file"),
        (with_line(2, "-1"), "line 2: .*negative"),
        (with_line(3, "-5 0 1 1 1 1 0 0 0 2"), "line 3: expected the id"),
        (with_line(3, "5 0 1 1 1 1 0 0 2"), "line 3: expected 10 values of a body, got 9"),
        (with_line(4, "24"), "line 4: expected the number of joints, 25"),
        (with_line(7, "1 2 3"), "line 7: expected 11 or 12 values of a joint, got 3"),
        (with_line(7, " ".join("1" * 13)), "line 7: expected 11 or 12 values of a joint, got 13"),
        (with_line(8, ""), "line 8: expected finite numbers"),
        (with_line(8, "1 nan 3 4 5 6 7 8 9 10 11"), "line 8: expected finite numbers"),
        (with_line(8, "1 1e39 3 4 5 6 7 8 9 10 11"), "line 8: expected finite numbers"),
        (with_line(8, "1 2 3x 4 5 6 7 8 9 10 11"), "line 8: expected finite numbers"),
        (with_line(8, "1 0x2 3 4 5 6 7 8 9 10 11"), "line 8: expected finite numbers"),
    ],
)
def test_malformed_text_names_the_line(text, message):
    with pytest.raises(ValueError, match=f"^clip: {message}"):
        ntu.parse(text.encode(), "clip")


def test_every_truncation_is_an_error_that_names_its_last_lines():
    data = TEXT.encode()
    last_joint = data.rindex(b" ")
    for end in range(0, last_joint, 41):
        with pytest.raises(ValueError, match=r"^data: line \d+: ") as caught:
            ntu.parse(data[:end])
        lines = data[:end].count(b"\n") + 1
        assert int(str(caught.value).split()[2].rstrip(":")) in (lines, lines + 1)


@st.composite
def mutated(draw):
    """A valid file after some bytes were replaced, deleted, inserted or repeated."""
    data = bytearray(TEXT.encode())
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(data)))
        stop = start + draw(st.sampled_from([0, 1, 2, 30, 3000]))
        data[start:stop] = draw(st.one_of(st.binary(max_size=12), st.text("0123456789+-.eEnaif \r\n", max_size=12).map(
            str.encode), st.just(bytes(data[start:stop]) * 2)))  # fmt: skip
    return bytes(data)


@settings(max_examples=400, deadline=None)
@given(st.one_of(mutated(), st.binary(max_size=200)))
@example(b"\x00" * 50)
@example(b"1\n1\n" + b"9" * 10_000)
def test_mutated_bytes_parse_or_raise(data):
    try:
        recording = ntu.parse(data)
    except ValueError as error:
        assert str(error).startswith("data: line ")  # noqa: PT017
        return
    assert np.isfinite(recording.joints).all()
    assert len(recording.joints) == len(recording.frames) == len(recording.bodies) <= len(data) // 50
    assert 2 * recording.num_frames <= len(data) + 1
    if len(recording.frames):
        assert 0 <= recording.frames.min() <= recording.frames.max() < recording.num_frames
        assert set(recording.bodies.tolist()) == set(range(len(recording.ids)))
        assert (np.diff(recording.frames) >= 0).all()


@pytest.mark.parametrize("threads", [1, 3, 64])
def test_threads_return_the_files_in_order(tmp_path, threads):
    paths = [tmp_path / f"{i}é.skeleton" for i in range(20)]
    for i, path in enumerate(paths):
        write_recording(path, 3 + i, [range(3 + i)], seed=i)
    recordings = ntu.read_files([str(path) for path in paths], threads)
    for i, (recording, path) in enumerate(zip(recordings, paths, strict=True)):
        check(recording, random_frames(3 + i, [range(3 + i)], seed=i))
        np.testing.assert_array_equal(recording.joints, ntu.read(path).joints)
    assert ntu.read_files([]) == []


def test_bad_files_are_all_named(tmp_path):
    good, cut, absent = (tmp_path / name for name in ("good", "cut", "absent"))
    good.write_text(TEXT)
    cut.write_text(TEXT[:500])
    with pytest.raises(ValueError, match=r"cut: line \d+: .*\n.*absent: No such file") as caught:
        ntu.read_files([good, cut, absent, tmp_path])
    assert f"{tmp_path}: Is a directory" in str(caught.value)
    assert "good" not in str(caught.value)
    with pytest.raises(ValueError, match="and 2 more files"):
        ntu.read_files([absent] * 12)
    with pytest.raises(ValueError, match="num_threads"):
        ntu.read_files([good], -1)


def test_missing_module_says_how_to_build_it(monkeypatch):
    ntu._io.cache_clear()
    monkeypatch.setitem(sys.modules, "skelops.lib._io", None)
    with pytest.raises(ImportError, match=r"pip install --no-build-isolation \."):
        ntu.parse(b"0")
    ntu._io.cache_clear()


def test_main_bodies_are_the_most_energetic_two():
    frames = random_frames(40, [range(40), range(40), range(40)])
    still = [(FIRST_ID + 9, np.ones((25, 3)))]
    clip = main_bodies(ntu.parse(skeleton_text([still + bodies for bodies in frames]).encode()))
    assert clip.shape == (40, 2, 25, 3)
    spread = [np.std([bodies[i][1] for bodies in frames], axis=(0, 1)).sum() for i in range(3)]
    first, second = np.argsort(spread)[::-1][:2]
    for frame, bodies in enumerate(frames):
        np.testing.assert_allclose(clip[frame], [bodies[first][1], bodies[second][1]], rtol=1e-5, atol=1e-6)


def test_main_bodies_keeps_a_person_found_again_on_one_track_and_drops_empty_frames():
    frames = random_frames(12, [range(1, 5), range(6, 11)])
    clip = main_bodies(ntu.parse(skeleton_text(frames).encode()))
    assert clip.shape == (9, 2, 25, 3)
    assert clip[:, 0].any((1, 2)).all()
    assert not clip[:, 1].any()
    assert main_bodies(ntu.parse(b"2\n0\n0\n")).shape == (0, 2, 25, 3)


def body(height: float, width: float, energy: float) -> np.ndarray:
    """Joints (12, 25, 3) of a box that grows in depth, away from where it stands."""
    joints = np.zeros((12, 25, 3))
    joints[:, 3, 1], joints[:, 7, 0] = height, width
    joints[:, 5, 2] = energy * np.arange(12)
    return joints + np.array([3, -1, 2])


def test_standing_bodies_leave_out_what_lies_and_hardly_moves():
    person, second = body(2, 1, 3), body(1, 2, 2.95)
    table, other = body(1, 2, 1), body(2, 1, 0.5)

    def found(*bodies: np.ndarray) -> np.ndarray:
        frames = [[(FIRST_ID + i, joints[frame]) for i, joints in enumerate(bodies)] for frame in range(12)]
        return standing_bodies(ntu.parse(skeleton_text(frames).encode()))

    for bodies, expected in (
        ([table], [table]),
        ([table, person], [person]),
        ([table, other, person], [person, other]),
        ([other, second, table, person], [person, second]),
    ):
        clip = found(*bodies)
        for track, joints in enumerate(expected):
            np.testing.assert_allclose(clip[:, track], joints, rtol=1e-5, atol=1e-6)
        assert not clip[:, len(expected) :].any()
    assert standing_bodies(ntu.parse(b"2\n0\n0\n")).shape == (0, 2, 25, 3)


def test_standing_bodies_have_a_track_each_and_empty_frames_are_dropped():
    frames = random_frames(12, [range(1, 5), range(6, 11)])
    clip = standing_bodies(ntu.parse(skeleton_text(frames).encode()))
    assert sorted(clip.any((2, 3)).sum(0).tolist()) == [4, 5]
    assert clip.shape == (9, 2, 25, 3)


@pytest.fixture
def folder(tmp_path):
    """Performer 1 trains and 3 tests; camera 1 tests; setups 1 and 2; one action of NTU-120 only; one damaged."""
    folder = tmp_path / "skeletons"
    folder.mkdir()
    seed = 0
    for performer in (1, 3):
        for camera in (1, 2):
            for action in (1, 60, 61):
                setup = 18 if action == 61 else 1
                name = f"S{setup:03d}C{camera:03d}P{performer:03d}R001A{action:03d}.skeleton"
                write_recording(folder / name, 10, [range(10)] * (2 if action == 60 else 1), seed := seed + 1)
    (folder / "S001C001P001R002A001.skeleton").write_text("2\n0\n0\n")
    return folder


MISSING = ["S001C001P001R002A001"]


@pytest.mark.parametrize(
    ("name", "split", "labels"),
    [
        ("ntu60_xsub", "train", [0, 59, 0, 59]),
        ("ntu60_xview", "test", [0, 59, 0, 59]),
        ("ntu120_xsub", "test", [0, 59, 0, 59, 60, 60]),
        ("ntu120_xset", "train", [60] * 4),
    ],
)
def test_load(folder, tmp_path, name, split, labels):
    data = ntu.load(folder, name, split, frames=16, missing=MISSING, cache=tmp_path / "cache")
    assert data.clips.shape == (len(labels), 3, 16, 25, 2)
    assert data.labels.tolist() == labels
    assert data.num_classes == int(name[3:].split("_")[0])
    assert data.class_names[0] == "A001"
    assert torch.isfinite(data.clips).all()
    assert not data.clips[:, :, :, 20].any(), "centred on joint 21"
    second_body = data.clips[..., 1].flatten(1).any(1)
    assert torch.equal(second_body, data.labels == 59)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_load_reads_the_files_once_and_anew_when_they_change(folder, tmp_path, monkeypatch):
    listed = tmp_path / "missing.txt"
    listed.write_text("S001C001P001R002A001\n")
    arguments = dict(frames=8, missing=listed, cache=tmp_path / "cache")
    first = ntu.load(folder, **arguments)
    with monkeypatch.context() as patch:
        patch.setattr(ntu, "read_files", lambda *_: pytest.fail("the cache was not used"))
        assert torch.equal(ntu.load(folder, **arguments).clips, first.clips)
        ntu.load(folder, split="test", **arguments)
    write_recording(folder / "S001C001P001R001A001.skeleton", 11, [range(11)], 99)
    changed = ntu.load(folder, **arguments)
    assert not torch.equal(changed.clips[0], first.clips[0])
    assert torch.equal(changed.clips[1:], first.clips[1:])


@pytest.mark.parametrize("recipe", ["resize", "scd_net"])
def test_whole_clips_have_lengths(folder, tmp_path, recipe):
    arguments = dict(recipe=recipe, missing=MISSING, cache=tmp_path / "cache")
    write_recording(folder / "S001C001P001R001A001.skeleton", 14, [range(14)], 99)
    for _ in range(2):  # the second time from the cache
        data = ntu.load(folder, frames=None, **arguments)
        assert data.clips.shape == (4, 3, 300, 25, 2)
        assert data.lengths.tolist() == [14, 10, 10, 10]
        assert not data.clips[0, :, 14:].any()
    short = ntu.load(folder, frames=16, **arguments)
    assert short.lengths.tolist() == [16] * 4
    assert bool(short.clips[:, :, :, 20].any()) == (recipe == "scd_net")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_cache_files_of_another_format_or_content_are_written_anew(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = ntu.load(folder, frames=8, missing=MISSING, cache=cache)
    (path,) = cache.iterdir()
    np.save(path, np.zeros((len(first), 3, 9, 25, 2), np.float32))
    assert torch.equal(ntu.load(folder, frames=8, missing=MISSING, cache=cache).clips, first.clips)
    assert [*cache.iterdir()] == [path]
    monkeypatch.setattr(ntu, "FORMAT", ntu.FORMAT + 1)
    ntu.load(folder, frames=8, missing=MISSING, cache=cache)
    assert len([*cache.iterdir()]) == 2


def test_load_errors(folder, tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match="S001C001P001R002A001.skeleton: no body in any frame; name .* `missing`"):
        ntu.load(folder, cache=cache)
    assert not list(cache.iterdir()), "no file may be left of a failed reading"
    with pytest.raises(ValueError, match="benchmark: expected one of ntu60_xsub, .*got 'xsub'"):
        ntu.load(folder, "xsub", cache=cache)
    with pytest.raises(ValueError, match="split: expected train or test"):
        ntu.load(folder, split="val", cache=cache)
    with pytest.raises(ValueError, match="found none"):
        ntu.load(tmp_path, cache=cache)
    (folder / "odd.skeleton").write_text("0")
    with pytest.raises(ValueError, match=r"odd\.skeleton: expected a name"):
        ntu.load(folder, missing=MISSING, cache=cache)


def test_training_splits_have_the_published_sizes():
    sizes = {name: len(benchmark.training) for name, benchmark in ntu.BENCHMARKS.items()}
    assert sizes == {"ntu60_xsub": 20, "ntu60_xview": 2, "ntu120_xsub": 53, "ntu120_xset": 16}
