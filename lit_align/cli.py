"""`lit-align VERB ...`: the command line. It answers `--help` without importing torch or Lightning."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from lit_align import __version__
from lit_align.commands import COMMANDS, PIPELINE, STAGES, run_verb
from lit_align.errors import UserError, WorldFailed


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code.

    Args:
        argv: the arguments without the program's name; those of the process if not given.

    Returns:
        0, or 2 for a mistake in what was asked for, 130 after Ctrl-C, 1 when a stage of a pipeline failed.
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
    except WorldFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.stderr.write(f"error: the disk is full ({error}): make room, then run the command again\n")
        return 2
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
        ("Commands", COMMANDS),
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
