"""Native build: csrc/cpu -> skelops/lib/libskelops_cpu.so and csrc/cuda -> skelops/lib/libskelops_cuda.so (both on
torch's stable ABI), csrc/io -> skelops.lib._io (pybind11).

SKELOPS_BUILD=auto   build what can be built here; what cannot is left out and skelops/lib/build.json says why (default)
SKELOPS_BUILD=none   pure Python
SKELOPS_BUILD=cpu    CPU kernels, or an error
SKELOPS_BUILD=cuda   CPU and CUDA kernels, or an error

torch must be importable for the kernels: pip install --no-build-isolation .
CUDA kernels need nvcc (CUDA_HOME, or on the PATH) of the CUDA that torch was built with, but no GPU;
TORCH_CUDA_ARCH_LIST chooses the architectures ("9.0;10.0+PTX").
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
MODE = os.environ.get("SKELOPS_BUILD", "auto")
MODES = ("auto", "none", "cpu", "cuda")
CUDA_ARCHITECTURES = os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0;9.0;10.0+PTX"
# The lowest torch whose stable ABI is used: a library then serves every later torch, too.
STABLE = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
COMMON = ["-std=gnu++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-ffp-contract=fast"]
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]
# Kernels are compiled once per level; csrc/cpu/kernels/level.h chooses among them at run time.
LEVELS = {
    "portable": [],
    **({"avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]} if X86 else {}),
}


class Unavailable(Exception):
    """A part that cannot be built on this machine, and why."""


def compiler() -> str:
    name = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if not name or not shutil.which(name):
        raise Unavailable("no C++ compiler found (set CXX or install g++)")
    return name


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")
    if not found:
        raise Unavailable(f"no nvcc found ({f'CUDA_HOME is {home}' if home else 'set CUDA_HOME or add it to PATH'})")
    return found


def matching_nvcc() -> str:
    """nvcc, if torch was built with CUDA of the same major version."""
    torch_paths()
    import torch

    if torch.version.cuda is None:
        raise Unavailable(f"torch {torch.__version__} is built without CUDA")
    compiler = nvcc()
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", text)
    if not release or release[1] != torch.version.cuda.split(".")[0]:
        raise Unavailable(
            f"torch is built with CUDA {torch.version.cuda}, nvcc is {release[0] if release else 'unknown'}"
        )
    return compiler


def gencode() -> list[str]:
    """nvcc's flags for CUDA_ARCHITECTURES."""
    flags = []
    for entry in CUDA_ARCHITECTURES.replace(" ", ";").split(";"):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if not match:
            raise Unavailable(f"TORCH_CUDA_ARCH_LIST: expected entries such as 9.0 or 10.0+PTX, got {entry!r}")
        number = match[1] + match[2] + match[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def torch_paths() -> tuple[Path, Path]:
    try:
        import torch
    except ImportError as error:
        raise Unavailable("torch is not importable in the build; use: pip install --no-build-isolation .") from error
    root = Path(torch.__file__).parent
    return root / "include", root / "lib"


class Ninja:
    """One shared library, built by ninja, so that a rebuild touches only what changed."""

    def __init__(self, folder: Path, cxx: str) -> None:
        from ninja.ninja_syntax import Writer

        self.cxx = cxx

        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.file = (folder / "build.ninja").open("w")
        self.writer = Writer(self.file)
        self.objects: list[str] = []
        self.writer.rule("compile", "$cxx $flags -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        self.writer.rule("link", "$cxx -shared $in -o $out $libs")

    def compile(self, source: Path, flags: list[str], tag: str = "") -> None:
        target = f"{source.stem}{'.' + tag if tag else ''}.{source.parent.name}.o"
        variables = {"cxx": self.cxx, "flags": " ".join(flags)}
        self.writer.build(target, "compile", str(source.resolve()), variables=variables)
        self.objects.append(target)

    def link(self, output: Path, libs: list[str]) -> None:
        built = self.folder / output.name
        self.writer.build(built.name, "link", self.objects, variables={"cxx": self.cxx, "libs": " ".join(libs)})
        self.file.close()
        command = [sys.executable, "-m", "ninja", "-C", str(self.folder)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise Unavailable("compilation failed:\n" + "\n".join(result.stdout.splitlines()[-30:]))
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_name(output.name + ".partial")
        shutil.copyfile(built, partial)
        partial.replace(output)


def build_cpu(output: Path, folder: Path) -> None:
    include, lib = torch_paths()
    ninja = Ninja(folder, compiler())
    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        ninja.compile(source, [*COMMON, *STABLE, f"-isystem{include}"])
    for source in sorted((CSRC / "cpu" / "kernels").glob("*.cpp")):
        for level, flags in LEVELS.items():
            ninja.compile(source, [*COMMON, *flags, f"-DSKELOPS_LEVEL={level}"], level)
    if sys.platform == "darwin":
        ninja.link(output, ["-undefined", "dynamic_lookup"])
    else:
        # Named, because Python loads torch's libraries privately.
        ninja.link(output, [f"-L{lib}", "-ltorch_cpu"])


def build_cuda(output: Path, folder: Path) -> None:
    # Asked for by name, it is also compiled where torch has no CUDA: proof that it compiles, though it loads elsewhere.
    cxx = nvcc() if MODE == "cuda" else matching_nvcc()
    include, lib = torch_paths()
    ninja = Ninja(folder, cxx)
    flags = ["-std=c++20", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-DUSE_CUDA", *STABLE, f"-isystem={include}"]
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        ninja.compile(source, [*flags, *gencode()])
    parts = [name for name in ("torch_cpu", "torch_cuda") if (lib / f"lib{name}.so").exists()]
    ninja.link(output, [f"-L{lib}", *(f"-l{name}" for name in parts)])


def build_io(output: Path, folder: Path) -> None:
    import pybind11

    ninja = Ninja(folder, compiler())
    includes = [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]
    for source in sorted((CSRC / "io").glob("*.cpp")):
        ninja.compile(source, [*COMMON, "-pthread", *includes])
    ninja.link(output, ["-pthread", *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])])


BUILDERS = {
    "skelops.lib.libskelops_cpu": build_cpu,
    "skelops.lib.libskelops_cuda": build_cuda,
    "skelops.lib._io": build_io,
}


class NativeBuild(build_ext):
    """Runs the builders; in auto mode a part that cannot be built is reported and left out."""

    def get_ext_filename(self, name: str) -> str:
        stem = Path(*name.split("."))
        return f"{stem}{sysconfig.get_config_var('EXT_SUFFIX') if stem.name == '_io' else '.so'}"

    def run(self) -> None:
        if MODE not in MODES:
            raise SystemExit(f"SKELOPS_BUILD: expected one of {', '.join(MODES)}, got {MODE!r}")
        report: dict[str, str] = {}
        built = []
        for extension in self.extensions:
            part = extension.name.rsplit(".", 1)[1]
            output = Path(self.get_ext_fullpath(extension.name)).resolve()
            try:
                if MODE == "none" or (MODE == "cpu" and part == "libskelops_cuda"):
                    report[part] = f"SKELOPS_BUILD={MODE}"
                    output.unlink(missing_ok=True)
                    continue
                BUILDERS[extension.name](output, ROOT / "build" / "native" / part)
                report[part] = "built"
                built.append(extension)
            except Exception as error:
                if MODE in ("cpu", "cuda"):
                    raise SystemExit(f"skelops: {part} could not be built: {error}") from error
                report[part] = str(error)
                output.unlink(missing_ok=True)
                print(f"skelops: {part} is left out: {error}", file=sys.stderr)
        folder = Path(self.get_ext_fullpath("skelops.lib._io")).parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.json").write_text(json.dumps(report, indent=1) + "\n")
        self.extensions = built

    def get_outputs(self) -> list[str]:
        folder = Path(self.get_ext_fullpath("skelops.lib._io")).parent
        return [*super().get_outputs(), str(folder / "build.json")]


setup(
    packages=[
        *find_packages(include=["skelops", "skelops.*"]),
        "skelops.methods",
        *(f"skelops.methods.{name}" for name in find_packages("methods")),
    ],
    package_dir={"skelops": "skelops", "skelops.methods": "methods"},
    ext_modules=[Extension(name, sources=[]) for name in BUILDERS],
    cmdclass={"build_ext": NativeBuild},
)
