"""The command line: ``skelops info|tune|train|eval|demo``. The last three need the [train] extra."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

#: What the [train] extra brings, by import name.
TRAIN_EXTRA = ("lightning", "torchmetrics", "jsonargparse", "tensorboard", "rich", "matplotlib")

#: What becomes of the work of an interrupted command.
AFTERWARDS = {"tune": "; what was found is kept", "train": "; a run resumes with --ckpt_path last"}


class CommandError(Exception):
    """A mistake of the user: its message is all that is printed, and the exit code is 2."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns errors of the block into a `CommandError` of one line; for what reads the user's arguments and files."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in TRAIN_EXTRA:
            raise
        raise CommandError(" ".join(str(error).split())) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="skelops", description="Fused ops for skeleton-based action recognition.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="info|tune|train|eval|demo")
    commands.add_parser("info", help="versions, devices, and which backend serves each op")
    tune = commands.add_parser("tune", help="measures tiles of the Triton kernels on this GPU, keeps the faster ones")
    tune.add_argument("ops", nargs="*", metavar="op", help="which ops (default: all that have Triton kernels)")
    tune.add_argument("--minutes", type=float, default=10.0, help="time for everything (default: %(default)s)")
    # These two parse their own arguments (and --help), for which they need the [train] extra.
    commands.add_parser("train", help="train: --config NAME or FILE, any key of it as --KEY VALUE", add_help=False)
    commands.add_parser("eval", help="linear probe and kNN of a checkpoint: --checkpoint FILE", add_help=False)
    demo = commands.add_parser("demo", help="SkeleMixCLR from data to accuracy table in minutes")
    demo.add_argument("--data", metavar="FOLDER", help="folder of NW-UCLA JSON files (default: the synthetic set)")
    demo.add_argument("--out", metavar="FOLDER", default="runs/demo", help="where results go (default: %(default)s)")
    demo.add_argument("--minutes", type=float, default=3.0, help="time for everything (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 2 after a mistake of the user, 130 after Ctrl-C."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command in ("info", "tune", "demo") and rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.command == "info":
        from skelops.info import report

        print(report())
        return 0
    try:
        if arguments.command == "tune":
            importlib.import_module("skelops.tune").main(arguments.ops, arguments.minutes)
            return 0
        command = importlib.import_module(f"skelops.methods.commands.{arguments.command}")
        if arguments.command == "demo":
            command.main(arguments.data, arguments.out, arguments.minutes)
        else:
            command.main(rest)
    except CommandError as error:
        print(f"skelops {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"skelops {arguments.command}: interrupted{AFTERWARDS.get(arguments.command, '')}", file=sys.stderr)
        return 130
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in TRAIN_EXTRA:
            raise
        print(f"skelops {arguments.command} needs the [train] extra: pip install 'skelops[train]'", file=sys.stderr)
        return 2
    return 0
