"""skelops tune: candidates, the search, the user's table, and mistakes told in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import skelops
from skelops import _triton, tune
from skelops.cli import main

pytest.importorskip("triton")

CPU = torch.device("cpu")
START = {"BC": 1, "BT": 8, "num_warps": 4, "num_stages": 2}


@pytest.fixture(autouse=True)
def own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "cache" / "tiles.json"
    monkeypatch.setenv("SKELOPS_TILES", str(path))
    _triton.table.cache_clear()
    _triton.tile.cache_clear()
    yield path
    _triton.table.cache_clear()
    _triton.tile.cache_clear()


def test_neighbours_differ_in_one_respect_and_stay_in_bounds() -> None:
    found = list(tune.neighbours({"BC": 1, "BT": 512, "num_warps": 16, "num_stages": 1}))
    assert found == [
        {"BC": 2, "BT": 512, "num_warps": 16, "num_stages": 1},
        {"BC": 1, "BT": 256, "num_warps": 16, "num_stages": 1},
        {"BC": 1, "BT": 512, "num_warps": 8, "num_stages": 1},
        {"BC": 1, "BT": 512, "num_warps": 16, "num_stages": 2},
    ]


def fake_kernel(cost: dict[str, Any]) -> tuple[Any, Any]:
    """A run that takes the tile of a kernel "fake", and a clock that says what ``cost`` gives for it."""
    device = torch.device("cpu")

    def run() -> list[torch.Tensor]:
        tile = _triton.tile("fake", device)
        if tile["BT"] == cost.get("fails"):
            raise RuntimeError("out of resource: shared memory")
        return [torch.full((3,), 2.0 if tile["BT"] == cost.get("wrong") else 1.0)]

    def clock(run: Any) -> float:
        run()
        return cost["times"].get(_triton.tile("fake", device)["BT"], 10.0)

    return run, clock


@pytest.mark.parametrize(
    ("cost", "block"),
    [
        ({"times": {8: 10, 16: 8, 32: 5, 64: 6}}, 32),  # two steps, then it gets slower
        ({"times": {8: 10, 16: 9.9}}, 8),  # within the ups and downs of a clock
        ({"times": {8: 10, 16: 8, 32: 1}, "wrong": 32}, 16),
        ({"times": {8: 10, 16: 8, 32: 1}, "fails": 32}, 16),
    ],
)
def test_search_goes_to_the_fastest_right_tile(cost: dict[str, Any], block: int) -> None:
    run, clock = fake_kernel(cost)
    best, share = tune.search("fake", START, [run], clock, float("inf"))
    assert best == {**START, "BT": block}
    assert share == cost["times"][block] / cost["times"][8]


def test_search_stops_when_the_time_is_over() -> None:
    run, clock = fake_kernel({"times": {8: 10, 16: 1}})
    assert tune.search("fake", START, [run], clock, deadline=0.0) == (START, 1.0)


def test_save_keeps_what_is_there(own_table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune.save("squeeze_pool", "sm_90", "channels_last", {**START, "BT": 2})
    tune.save("squeeze_pool", "sm_90", "default", START)
    tune.save("squeeze_pool", "sm_80", "channels_last", {**START, "BT": 4})
    assert json.loads(own_table.read_text()) == {
        "squeeze_pool": {
            "sm_90": {"channels_last": {**START, "BT": 2}, "default": START},
            "sm_80": {"channels_last": {**START, "BT": 4}},
        }
    }
    assert _triton.table()["squeeze_pool"]["sm_90"]["default"] == START
    before = own_table.read_text()
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        tune.save("squeeze_pool", "sm_90", "default", {**START, "BT": 1})
    assert own_table.read_text() == before


@pytest.mark.parametrize("error", [RuntimeError, PermissionError])
def test_a_user_without_a_home_has_no_table(
    error: type[Exception], own_table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def home() -> Path:
        raise error("no home")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert _triton.user_table() == own_table
    monkeypatch.delenv("SKELOPS_TILES")
    assert "squeeze_pool" in _triton.table()


def test_a_named_table_that_cannot_be_read_is_an_error(own_table: Path) -> None:
    own_table.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        _triton.table()


def test_a_default_does_not_hide_the_other_cases() -> None:
    before = _triton.table()["mask_pool"]["default"]["channels_last"]
    tune.save("mask_pool", "sm_90", "default", START)
    with _triton.recording("sm_90"):
        assert _triton.tile("mask_pool", CPU) == START
        assert _triton.tile("mask_pool", CPU, "channels_last") == before


@pytest.mark.parametrize("content", ["{", "[]", '{"squeeze_pool": 1}'])
def test_a_broken_table_is_named_and_left(own_table: Path, content: str) -> None:
    own_table.parent.mkdir()
    own_table.write_text(content)
    with pytest.raises(ValueError, match="tiles.json: not a table of tiles"):
        tune.save("squeeze_pool", "sm_90", "default", START)
    assert own_table.read_text() == content


@pytest.mark.skipif(not _triton.interpreted(), reason="interprets the kernels on the CPU")
def test_tune_finds_the_kernels_of_an_op_and_writes_their_tiles(
    own_table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def calls(dtype: torch.dtype) -> Iterator[partial]:
        yield partial(skelops.squeeze_pool, torch.randn(2, 3, 5, 4).to(dtype).requires_grad_())

    def clock(run: Any) -> float:
        """The larger BT is, the faster the forward pass (three results); the backward pass takes the same with any."""
        return 100.0 / _triton.tile("squeeze_pool", CPU)["BT"] if len(run()) == 3 else 1.0

    monkeypatch.setitem(tune.CALLS, "squeeze_pool", calls)
    monkeypatch.setattr(tune, "BLOCK", (1, 64))
    shipped = _triton.table()["squeeze_pool"]["default"]["default"]
    tune.tune("squeeze_pool", CPU, clock, float("inf"))
    assert json.loads(own_table.read_text()) == {"squeeze_pool": {"default": {"default": {**shipped, "BT": 64}}}}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["squeeze_pool", "squeeze_pool_backward"]
    assert "% of the time" in lines[0]
    assert "kept" in lines[1]


def test_every_op_with_tiles_has_calls() -> None:
    tables = (Path(skelops.__file__).parent / "ops").glob("*/tiles.json")
    assert {table.parent.name for table in tables} == tune.CALLS.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["squeeze"], "expected ops among"),
        (["--minutes", "0"], "--minutes: expected a number above zero, got 0"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_a_gpu_or_triton(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune"]) == 2
    assert capsys.readouterr().err == f"skelops tune: expected a CUDA device, torch {torch.__version__} finds none\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_triton, "missing", lambda: "Triton is not installed")
    assert main(["tune"]) == 2
    assert capsys.readouterr().err == "skelops tune: Triton is not installed\n"
