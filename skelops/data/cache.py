"""Array files that are written once and memory-mapped afterwards."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from ..files import replaced


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """`folder`, else $SKELOPS_CACHE, else ~/.cache/skelops; made if it does not exist."""
    path = Path(folder or os.environ.get("SKELOPS_CACHE") or Path.home() / ".cache" / "skelops")
    path.mkdir(parents=True, exist_ok=True)
    return path


def digest(files: Iterable[Path], *settings: object) -> str:
    """16 hexadecimal digits that change with any file's name, size or modification time, and with the settings."""
    text = [repr(settings)]
    for file in files:
        status = file.stat()
        text.append(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}")
    return hashlib.sha256("\n".join(text).encode("utf-8", "surrogateescape")).hexdigest()[:16]


@contextmanager
def new_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[np.ndarray]:
    """A memory-mapped .npy file to fill in; it appears under its name, whole, when the block ends without an error."""
    with replaced(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.dtype(dtype), shape=shape)
        yield array
        array.flush()


def open_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...] | None = None) -> np.ndarray | None:
    """The array memory-mapped read-only, or None when the file is absent, cut short or holds another one (then the
    caller writes it). ``shape`` None takes any."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    fits = isinstance(found, np.ndarray) and found.dtype == np.dtype(dtype) and shape in (None, found.shape)
    return found if fits else None


def cached_array(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike, fill: Callable[[np.ndarray], None]
) -> np.ndarray:
    """The array of a file, memory-mapped read-only; ``fill`` writes it first where `open_array` finds none."""
    found = open_array(path, dtype, shape)
    if found is None:
        with new_array(path, shape, dtype) as array:
            fill(array)
        found = open_array(path, dtype, shape)
        assert found is not None
    return found
