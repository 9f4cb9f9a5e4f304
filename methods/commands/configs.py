"""Configuration files of ``skelops train``: packaged ones by their names, and those that another one includes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

CONFIGS = Path(__file__).parents[1] / "configs"
#: What several configurations include: a method's or a data set's share of them.
PARTS = "parts"


def packaged() -> list[str]:
    """Names of all packaged configurations, such as ``skelemix_clr/nw_ucla``."""
    files = (file.relative_to(CONFIGS) for file in CONFIGS.glob("*/*.yaml"))
    return sorted(file.with_suffix("").as_posix() for file in files if file.parent.name != PARTS)


def _find(name: str, folder: Path) -> Path:
    for path in (folder / name, CONFIGS / f"{name}.yaml"):
        if path.is_file():
            return path
    folders: dict[str, list[str]] = {}
    for known in packaged():
        folders.setdefault(known.partition("/")[0], []).append(known.partition("/")[2])
    names = ", ".join(f"{method}/{{{','.join(sets)}}}" for method, sets in folders.items())
    raise ValueError(f"--config: expected a file or one of {names}, got {name}")


def layers(name: str, folder: Path = Path(), including: Sequence[Path] = ()) -> list[str]:
    """A configuration as the values of --config that make it: the files under its key ``include``, in their order, then
    its own keys, each of which wins over what comes before.

    Args:
        name: a packaged configuration, or a path from ``folder``, that of the including file.
        including: files that lead to it.

    Raises:
        ValueError: no such file (lists the packaged names), not YAML, or a file that includes itself; names the file.
    """
    path = _find(name, folder)
    if path in including:
        raise ValueError(f"--config: {path} includes itself")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config: {path}: {error}") from error
    if not isinstance(content, dict) or "include" not in content:
        return [str(path)]
    names = content.pop("include")
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise ValueError(f"--config: {path}: include: expected a list of names, got {names!r}")
    below = [layer for each in names for layer in layers(each, path.parent, (*including, path))]
    return [*below, yaml.safe_dump(content)]


def resolved(arguments: Sequence[str]) -> list[str]:
    """Arguments of ``skelops train`` with every --config replaced by its layers, which come first: every other argument
    wins over them, wherever it stood."""
    configs: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        key, given, value = argument.partition("=")
        if key not in ("--config", "-c"):
            others.append(argument)
            continue
        name = value if given else next(rest, None)
        configs += [f"--config={layer}" for layer in layers(name)] if name is not None else [argument]
    return configs + others
