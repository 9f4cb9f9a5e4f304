"""What runs here: versions, devices, and which backend serves each op."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

import skelops
from skelops import _backend, _native, _triton
from skelops._op import REGISTRY, Op


def versions() -> dict[str, str | None]:
    """Versions of skelops and of what it runs on; None for what is not installed."""
    # torch's own version names the CUDA that it was built with; its package's need not.
    found: dict[str, str | None] = {
        "skelops": skelops.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    for name in ("triton", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def devices() -> dict[str, str]:
    """Name of every device, by its torch name."""
    names = {"cpu": f"{processor()}, {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        names[f"cuda:{index}"] = torch.cuda.get_device_name(index)
    return names


def processor() -> str:
    """Name of the CPU, with the family and model that tell generations of one name apart."""
    try:
        with open("/proc/cpuinfo") as file:
            found = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        found = {}
    fields = {key.strip(): value.strip() for key, value in found.items()}
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    if "cpu family" not in fields:
        return fields["model name"]
    return f"{fields['model name']} (family {fields['cpu family']}, model {fields['model']})"


def _op_lines(op: Op) -> list[str]:
    """The backend per device type in float32, beside it why those that are preferred do not serve, or which one would
    serve as well."""
    lines = []
    for device, names in _backend.BACKENDS.items():
        backend, reasons = _backend.choose(op.package, op.name, device, torch.float32)
        # What is missing for all ops is told once, with the way to get it.
        notes = [f"not {name}: {reason.partition(' (')[0]}" for name, reason in reasons.items()]
        for name in names[names.index(backend) + 1 :]:
            reason = _backend.unavailable(name, op.package, op.name, device, torch.float32)
            if name != "reference" and reason is None:
                notes.append(f"before {name} by default, which nobody measured on this GPU")
        lines.append(f"  {op.name:<28} {device:<5} {backend:<10} {'; '.join(notes)}".rstrip())
    return lines


def report() -> str:
    """The text of ``skelops info``."""
    installed = "  ".join(f"{name} {version or 'not installed'}" for name, version in versions().items())
    lines = [installed, "", "devices"]
    lines += [f"  {name:<8} {description}" for name, description in devices().items()]
    lines += ["", "backends"]
    lines += [f"  cpu      {_native.missing['cpu'] or f'native CPU kernels loaded, {_native.instruction_set()}'}"]
    lines += [f"  cuda     {_native.missing['cuda'] or 'native CUDA kernels loaded'}"]
    lines += [f"  triton   {_triton.missing() or 'installed'}"]
    lines += ["", "ops               (name, device, backend that serves float32)"]
    for name in sorted(REGISTRY):
        lines += _op_lines(REGISTRY[name])
    return "\n".join(lines)
