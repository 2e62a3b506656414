"""What must not go up: secrets, which are refused, and places on this machine, which are made relative."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from lit_align.errors import UserError

_SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Google API key": r"\bAIza[\w-]{35}",
    "a Slack token": r"\bxox[abeoprs]-[\w-]{10,}",
    "an API key": r"\bsk-[\w-]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@]+:[^\s/@]+@",
    "a password of a .netrc": r"\bmachine\s+\S+\s+login\s+\S+\s+password\s+\S+",
}
_NAMED = re.compile(
    r"""(?ix) \b (?:[a-z0-9]+[_-])* (?:api[_-]?key|access[_-]?key|secret|password|passwd|private[_-]?key|token)
    (?:[_-](?:id|key|value))? ["']? \s* [:=] \s* ["']? (?P<value> [^\s"',;}\])(]{6,})"""
)
_PLACEHOLDER = re.compile(r"[$<{*]|(?i:null|none|true|false|x+)$|(?i:your|my_|os\.)|[A-Z_]+$|\.\.\.")
_PLACE = re.compile(r"(?:(?<=file://)|(?<![\w.~:/<)\]-]))/(?:[\w.+@-]+/)+[\w.+@-]*|\b[A-Za-z]:\\(?:[^\s\\\"'<>|]+\\?)+")


def refuse_secrets(text: str, name: str) -> None:
    """Raises ValueError if a text holds something that looks like a secret; the message does not repeat it.

    Args:
        text: What would go up.
        name: The file that it is of.
    """
    for number, line in enumerate(text.splitlines(), 1):
        for what, pattern in _SECRETS.items():
            if re.search(pattern, line):
                raise _refused(name, number, what)
        for found in _NAMED.finditer(line):
            if not _PLACEHOLDER.match(found["value"]):
                raise _refused(name, number, "a secret under its name")


def _refused(name: str, number: int, what: str) -> UserError:
    return UserError(f"{name}, line {number}, looks as if it held {what}; nothing was uploaded: take it out first")


def relative(text: str) -> str:
    """A text with absolute paths made relative.

    A path in the working folder is given from there; of any other, the last two names are kept, but none of a home
    folder's own.
    """
    return _PLACE.sub(lambda found: _shorter(found[0]), text)


def _shorter(path: str) -> str:
    if "\\" in path:
        parts = [part for part in path.split("\\")[1:] if part]
    else:
        here = str(Path.cwd())
        clean = os.path.normpath(path)
        if here != "/" and (clean == here or clean.startswith(here + "/")):
            return os.path.relpath(clean, here)
        parts = list(PurePosixPath(clean).parts[1:])
    if parts and parts[0].lower() in ("home", "users"):
        parts = parts[2:]
    return "/".join(parts[-2:]) or "~"


def scrub(content: Any) -> Any:
    """JSON content with absolute paths made relative, in keys as in values."""
    if isinstance(content, str):
        return relative(content) if not _alone(content) else _shorter(content)
    if isinstance(content, dict):
        return {scrub(key): scrub(value) for key, value in content.items()}
    if isinstance(content, list):
        return [scrub(value) for value in content]
    return content


def _alone(text: str) -> bool:
    """Whether a text is an absolute path and nothing else, spaces in it or not."""
    return re.fullmatch(r"/[^/\n\"]+(/[^/\n\"]*)*|[A-Za-z]:\\[^\n\"]*", text) is not None
