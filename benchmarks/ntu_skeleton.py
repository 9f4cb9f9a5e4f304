"""Speed of the .skeleton parser against readers that go through a file line by line in Python.

    python -m benchmarks.ntu_skeleton [FOLDER of .skeleton files]

Without a folder it writes 64 files of 100 frames, half of them with two bodies. The readers take turns within each
round, and the table gives medians. `all fields` converts every value into dictionaries, as the readers released with
action recognition code do; `x y z only` converts three values a joint into an array, the least that Python can do.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from skelops.data import ntu

ROUNDS = 7
_BODY = ("id", "clipped", "left_confidence", "left_state", "right_confidence", "right_state", "restricted",
         "lean_x", "lean_y", "tracking")  # fmt: skip
_JOINT = ("x", "y", "z", "depth_x", "depth_y", "color_x", "color_y", "w", "rx", "ry", "rz", "tracking")


def read_all_fields(path: Path) -> list[list[dict]]:
    """Every value of a file, as dictionaries."""
    with path.open() as file:
        frames = []
        for _ in range(int(file.readline())):
            bodies = []
            for _ in range(int(file.readline())):
                body: dict = dict(zip(_BODY, map(float, file.readline().split()), strict=False))
                body["joints"] = [
                    dict(zip(_JOINT, map(float, file.readline().split()), strict=False))
                    for _ in range(int(file.readline()))
                ]
                bodies.append(body)
            frames.append(bodies)
        return frames


def read_xyz_only(path: Path) -> np.ndarray:
    """Positions of every body row, (R, 25, 3)."""
    rows: list[list[list[float]]] = []
    with path.open() as file:
        for _ in range(int(file.readline())):
            for _ in range(int(file.readline())):
                file.readline()
                joints = []
                for _ in range(int(file.readline())):
                    x, y, z = file.readline().split(maxsplit=3)[:3]
                    joints.append([float(x), float(y), float(z)])
                rows.append(joints)
    return np.array(rows, np.float32)


def write_files(folder: Path) -> None:
    """64 realistic files, by the writer of the tests."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from ntu_writer import write_recording

    for index in range(64):
        bodies = [range(100)] * (1 + index % 2)
        write_recording(folder / f"S001C001P001R001A{index + 1:03d}.skeleton", 100, bodies, seed=index)


def measure(readers: dict[str, Callable[[Sequence[Path]], object]], files: Sequence[Path]) -> dict[str, float]:
    """Median seconds of each reader over all files, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(ROUNDS):
        for name, reader in readers.items():
            start = time.perf_counter()
            reader(files)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="folder of .skeleton files")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            folder = Path(temporary)
            write_files(folder)
        files = sorted(folder.glob("*.skeleton"))
        if not files:
            parser.error(f"no .skeleton file in {folder}")
        cores = os.cpu_count() or 1
        seconds = measure(
            {
                "Python, all fields": lambda paths: [read_all_fields(path) for path in paths],
                "Python, x y z only": lambda paths: [read_xyz_only(path) for path in paths],
                "skelops, 1 thread": lambda paths: ntu.read_files(paths, 1),
                f"skelops, {cores} threads": lambda paths: ntu.read_files(paths, cores),
            },
            files,
        )
        megabytes = sum(file.stat().st_size for file in files) / 1e6
        print(f"{len(files)} files, {megabytes:.1f} MB")
        print(f"{'reader':20} {'ms a file':>10} {'MB/s':>8} {'speed-up':>9} {'over x y z':>11}")
        slowest, lean = seconds["Python, all fields"], seconds["Python, x y z only"]
        for name, value in seconds.items():
            print(f"{name:20} {1e3 * value / len(files):10.3f} {megabytes / value:8.1f} {slowest / value:8.1f}x"
                  f" {lean / value:10.1f}x")  # fmt: skip


if __name__ == "__main__":
    main()
