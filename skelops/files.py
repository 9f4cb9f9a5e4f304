"""Files that appear under their names whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A new file in the folder of ``path`` to write to, which takes the place of ``path`` when the block ends without
    an error, and goes when it does not."""
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:12]}{path.suffix}")
    temporary.touch(exist_ok=False)  # with the mode that the user's umask leaves, which files of tempfile do not have
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
