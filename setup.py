"""Native build: csrc/cpu -> skelops/lib/libskelops_cpu.so (torch's stable ABI), csrc/io -> skelops.lib._io (pybind11).

SKELOPS_BUILD=auto   build what can be built here; what cannot is left out and skelops/lib/build.json says why (default)
SKELOPS_BUILD=none   pure Python
SKELOPS_BUILD=cpu    CPU kernels, or an error
SKELOPS_BUILD=cuda   CPU and CUDA kernels, or an error

torch must be importable for the kernels: pip install --no-build-isolation .
"""

import json
import os
import platform
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
COMMON = ["-std=gnu++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi", "-ffp-contract=fast"]
X86 = platform.machine().lower() in ("x86_64", "amd64")
# Kernels are compiled once per level; csrc/cpu/kernels/level.h chooses among them at run time.
LEVELS = {
    "portable": [],
    **({"avx2": ["-mavx2", "-mfma"]} if X86 else {}),
    **(
        {"avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]}
        if X86
        else {}
    ),
}


class Unavailable(Exception):
    """A part that cannot be built on this machine, and why."""


def compiler() -> str:
    name = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if not name or not shutil.which(name):
        raise Unavailable("no C++ compiler found (set CXX or install g++)")
    return name


def torch_paths() -> tuple[Path, Path]:
    try:
        import torch
    except ImportError as error:
        raise Unavailable("torch is not importable in the build; use: pip install --no-build-isolation .") from error
    root = Path(torch.__file__).parent
    return root / "include", root / "lib"


class Ninja:
    """One shared library, built by ninja, so that a rebuild touches only what changed."""

    def __init__(self, folder: Path) -> None:
        from ninja.ninja_syntax import Writer

        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.file = (folder / "build.ninja").open("w")
        self.writer = Writer(self.file)
        self.objects: list[str] = []
        self.writer.rule("compile", "$cxx $flags -MMD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        self.writer.rule("link", "$cxx -shared $in -o $out $libs")

    def compile(self, source: Path, flags: list[str], tag: str = "") -> None:
        target = f"{source.stem}{'.' + tag if tag else ''}.{source.parent.name}.o"
        variables = {"cxx": compiler(), "flags": " ".join(flags)}
        self.writer.build(target, "compile", str(source.resolve()), variables=variables)
        self.objects.append(target)

    def link(self, output: Path, libs: list[str]) -> None:
        built = self.folder / output.name
        self.writer.build(built.name, "link", self.objects, variables={"cxx": compiler(), "libs": " ".join(libs)})
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
    ninja = Ninja(folder)
    # The lowest torch whose stable ABI is used: the library then serves every later torch, too.
    stable = ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-isystem{include}"]
    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        ninja.compile(source, COMMON + stable)
    for source in sorted((CSRC / "cpu" / "kernels").glob("*.cpp")):
        for level, flags in LEVELS.items():
            ninja.compile(source, [*COMMON, *flags, f"-DSKELOPS_LEVEL={level}"], level)
    if sys.platform == "darwin":
        ninja.link(output, ["-undefined", "dynamic_lookup"])
    else:
        # Named, because Python loads torch's libraries privately.
        ninja.link(output, [f"-L{lib}", "-ltorch_cpu"])


def build_io(output: Path, folder: Path) -> None:
    import pybind11

    ninja = Ninja(folder)
    includes = [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_path('include')}"]
    for source in sorted((CSRC / "io").glob("*.cpp")):
        ninja.compile(source, [*COMMON, "-pthread", *includes])
    ninja.link(output, ["-pthread", *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])])


BUILDERS = {"skelops.lib.libskelops_cpu": build_cpu, "skelops.lib._io": build_io}


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
                if MODE == "none":
                    raise Unavailable("SKELOPS_BUILD=none")
                BUILDERS[extension.name](output, ROOT / "build" / "native" / part)
                report[part] = "built"
                built.append(extension)
            except Exception as error:
                if MODE in ("cpu", "cuda"):
                    raise SystemExit(f"skelops: {part} could not be built: {error}") from error
                report[part] = str(error)
                output.unlink(missing_ok=True)
                print(f"skelops: {part} is left out: {error}", file=sys.stderr)
            output.parent.mkdir(parents=True, exist_ok=True)
            (output.parent / "build.json").write_text(json.dumps(report, indent=1) + "\n")
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
