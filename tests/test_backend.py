"""Which backend serves an op, how one is forced, and what happens where the kernels are missing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch

import skelops
from skelops import _backend, _native
from skelops._op import REGISTRY

F32 = torch.float32


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a fresh interpreter."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True)


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_native.missing, "cpu", "native CPU kernels are not built (no compiler)")
    monkeypatch.setattr(_backend, "_warned", set())
    _backend.choose.cache_clear()
    yield
    _backend.choose.cache_clear()


@pytest.mark.parametrize("op", sorted(REGISTRY))
def test_every_op_has_a_cpu_kernel(op: str) -> None:
    assert _backend.choose(REGISTRY[op].package, op, "cpu", F32) == _backend.Choice("cpu", {})


def test_the_reference_hands_no_argument_on() -> None:
    """The gradient of a residual that nothing scales is the one that came; an op gives memory of its own."""
    x, residual = (torch.randn(2, 6, 3, 5).requires_grad_() for _ in range(2))
    upstream = torch.randn(2, 6, 3, 5)
    with skelops.backend("reference"):
        y = skelops.norm_act(x, torch.ones(6), torch.zeros(6), residual, negative_slope=1.0)
        (gradient,) = torch.autograd.grad(y, residual, upstream)
    assert torch.equal(gradient, upstream)
    assert gradient.untyped_storage().data_ptr() != upstream.untyped_storage().data_ptr()


def test_float64_runs_on_the_reference_and_says_why() -> None:
    choice = _backend.choose("skelops.ops.graph_conv", "graph_conv", "cpu", torch.float64)
    assert choice.backend == "reference"
    assert choice.reasons == {"cpu": "it takes float32, bfloat16; got torch.float64"}


def test_an_unknown_device_is_served_by_the_reference() -> None:
    assert _backend.choose("skelops.ops.graph_conv", "graph_conv", "mps", F32).backend == "reference"


def test_backend_forces_one(monkeypatch: pytest.MonkeyPatch) -> None:
    op = REGISTRY["squeeze_pool"]
    calls: list[str] = []
    reference = op.reference
    monkeypatch.setattr(op, "reference", lambda *args: (calls.append("reference"), reference(*args))[1])
    x = torch.randn(2, 3, 4, 25)
    skelops.squeeze_pool(x)
    assert calls == []
    with skelops.backend("reference"):
        skelops.squeeze_pool(x)
    assert calls == ["reference"]
    skelops.squeeze_pool(x)
    assert calls == ["reference"]


def test_backend_is_restored_after_an_error() -> None:
    with pytest.raises(KeyError), skelops.backend("reference"):
        raise KeyError
    assert _backend._forced == "auto"


def test_unknown_and_unfit_backends() -> None:
    with pytest.raises(ValueError, match="expected one of auto, reference, cpu, triton, cuda, got 'gpu'"):
        skelops.backend("gpu").__enter__()
    with skelops.backend("cuda"), pytest.raises(RuntimeError, match="squeeze_pool: it does not run on cpu"):
        skelops.squeeze_pool(torch.randn(2, 3, 4, 25))
    with skelops.backend("cpu"), pytest.raises(RuntimeError, match="takes float32, bfloat16; got torch.float64"):
        skelops.squeeze_pool(torch.randn(2, 3, 4, 25).double())


@pytest.mark.usefixtures("without_native")
def test_a_missing_kernel_is_told_once(recwarn: pytest.WarningsRecorder) -> None:
    x = torch.randn(2, 3, 4, 25)
    with pytest.warns(RuntimeWarning, match="slow reference backend: native CPU kernels are not built"):
        frames = skelops.squeeze_pool(x).frames
    torch.testing.assert_close(frames, x.mean(3))
    recwarn.clear()
    skelops.squeeze_pool(x)
    assert not recwarn.list


@pytest.mark.usefixtures("without_native")
def test_a_missing_kernel_is_an_error_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKELOPS_REQUIRE_NATIVE", "1")
    with pytest.raises(RuntimeError, match="SKELOPS_REQUIRE_NATIVE=1: squeeze_pool on cpu would run on the reference"):
        skelops.squeeze_pool(torch.randn(2, 3, 4, 25))
    skelops.squeeze_pool(torch.randn(2, 3, 4, 25).double())  # the reference is what float64 is for


def test_instruction_set_can_be_lowered() -> None:
    code = "from skelops import _native; print(_native.instruction_set())"
    assert run(code, SKELOPS_CPU_LEVEL="portable").stdout.strip() == "portable"
    assert run(code, SKELOPS_CPU_LEVEL="Portable").stdout.strip() == "portable"
    assert run(code, SKELOPS_CPU_LEVEL="").stdout.strip() == _native.instruction_set()


def test_an_unknown_instruction_set_is_refused() -> None:
    result = run("import skelops", SKELOPS_CPU_LEVEL="avx-2")
    message = "SKELOPS_CPU_LEVEL: expected one of portable, avx2, avx512, avx512_bf16, got 'avx-2'"
    assert result.returncode != 0 and f"ValueError: {message}" in result.stderr


def test_import_needs_torch_and_numpy_only() -> None:
    blocked = ("lightning", "torchmetrics", "jsonargparse", "rich", "matplotlib", "tensorboard", "triton", "pybind11")
    result = run(
        f"""
        import sys
        for name in {blocked}:
            sys.modules[name] = None
        import skelops, skelops.nn, skelops.data, skelops.graphs, skelops.methods, skelops.cli
        """
    )
    assert result.returncode == 0, result.stderr
