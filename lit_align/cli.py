"""`lit-align VERB ...`: the command line. It answers `--help` without importing torch or Lightning."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from lit_align import __version__, slurm
from lit_align.commands import COMMANDS, LISTS, PIPELINE, STAGES, run_verb
from lit_align.errors import FailedElsewhere, Preempted, Terminated, UserError, WorldFailed

DISK = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EFBIG: ("a file would be larger than is allowed", "raise the limit"),
    errno.EROFS: ("the disk can only be read", "mend that"),
    errno.EIO: ("the disk failed", "mend that"),
}
"""What a disk may refuse, and what to do; what a run had saved is there, and `--resume last` goes on from it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    Args:
        argv: the arguments without the program's name; those of the process if not given.

    Returns:
        0, or 2 for a mistake in what was asked for or a disk that is full, 130 after Ctrl-C, 143 after SIGTERM, 75
        where it stopped to go on later, 76 where its job was to be requeued besides and could not be, 1 when
        a stage of a pipeline failed.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(_help())
        return 0
    if args[0] == "--version":
        sys.stdout.write(f"lit-align {__version__}\n")
        return 0
    try:
        run_verb(args)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except FailedElsewhere:
        return 0  # else Lightning's launcher may kill process 0 before that one has said it
    except WorldFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except OSError as error:
        if error.errno not in DISK:
            raise
        what, mend = DISK[error.errno]
        sys.stderr.write(f"error: {what} ({error}): {mend}, then run the command again\n")
        return 2
    except Preempted as stop:
        return slurm.leave(stop)
    except Terminated:
        sys.stderr.write("terminated\n")
        return 143
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except (
        SystemExit
    ) as end:  # the parsers end this way after --help and --print_config, a pipeline when a stage failed
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


def _help() -> str:
    groups = [
        ("The recipe", PIPELINE),
        ("Stages (VERB fit|validate|test)", STAGES),
        ("Commands", {**COMMANDS, **LISTS}),
    ]
    lines = [
        f"lit-align {__version__}: pre-train, fine-tune, learn a reward, align an agent that plays from pixels",
        "",
    ]
    lines += ["usage: lit-align VERB [--config FILE ...] [--key value ...]", ""]
    for title, verbs in groups:
        lines.append(f"{title}:")
        lines += [f"  {verb:<10} {text}" for verb, text in verbs.items()]
        lines.append("")
    lines.append("`lit-align VERB --help` lists what a verb takes, `--print_config` its configuration as YAML.")
    return "\n".join(lines) + "\n"
