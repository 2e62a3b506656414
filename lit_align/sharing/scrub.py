"""What must not go up: secrets, which are refused, and places on this machine, which are made relative."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
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
    "a password in an address": r"\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@]+:[^\s/@]+@",
    "a password of a .netrc": r"\bmachine\s+\S+\s+login\s+\S+\s+password\s+\S+",
    "a bearer's token": r"(?i)\bbearer[ \t]+(?=[\w.~+/=-]*\d)[\w.~+/=-]{12,}",
    "credentials": r"""(?i)\bauthorization[\\"']*[ \t]*[:=][ \t]*[\\"']*(?:(?:bearer|basic|token)[ \t]+)?"""
    r"""(?!bearer\b|basic\b|token\b)[^\s"'$<{*,]{6,}""",
}
_SHORTEST = 6
_NAME = r"""(?:[\w.-]*(?:passw(?:or)?d|passphrase|secret)\d*(?:[_-]\w+)*
    |(?:[\w.-]*[._-])?(?:api|access|private|secret|auth|account|signing|encryption)[_-]?key
        (?:[_-](?:id|value))?(?:[_-](?:of|for)[_-]\w+)?
    |(?:[\w.-]*[._-])?(?:access|auth|bearer|refresh|api|session|bot|id)?[_-]?token
        (?:[_-](?:key|value))?(?:[_-](?:of|for)[_-]\w+)?)"""
_VALUE = r"""(?:(?P<quote>["'`])(?P<quoted>(?:(?!(?P=quote)).){6,}?)(?P=quote)
    |[\\"'`*]*(?P<bare>(?:<[^<>\n]+>|\$\{[^{}\n]*\}|os\.environ\[["'\w]+\])(?=[\s"'`,;})\]]|$)|[^\s"'`,;}\])(]{6,}))"""
_NAMED = re.compile(rf"""(?ixm)(?<![\w.-]){_NAME}(?P<after>[\\"'`*]{{0,4}}[ \t]*(?::=|=>|[:=])[ \t]*){_VALUE}""")
_OPTION = re.compile(rf"""(?ixm)(?<![\w-])--?(?=\w){_NAME}(?:[ \t]+(?:\\\n[ \t]*)?|[ \t]*\\\n[ \t]*)(?!--){_VALUE}""")
_KEY = re.compile(rf"(?ix)(?:.*[^\w.-])?-*{_NAME}")
_WANDB = re.compile(
    r"(?i)(?<![a-z0-9])(?:wandb|api|key|token|login)(?![a-z0-9])(?P<between>[^\n]{0,40}?)\b[0-9a-f]{40}\b"
)
_NO_KEY = re.compile(r"(?i)commit|revision|sha|git|tree|blob|fingerprint|@")
_PLACEHOLDER = re.compile(
    r"\$[A-Z_][A-Z0-9_]*|\$\{\w+\}|\$?\{\{[^{}]*(?:\}\})?|<[^<>]*>|\*+|\.{3,}|"
    r"(?i:none|null|true|false|x+|your[-_ ][\w -]*|os\.getenv|os\.environ(?:\.get|\[.*\]?)?|"
    r"(?:(?:self|args|config|my|hf|api)[._])?(?:token|password|passwd|secret|api[_-]?key|key))"
)

_REST = r"(?:[\\/]+[\w.+@%~=-]+)*[\\/]*"
_PLACE = re.compile(
    rf"""(?xi)
    (?P<url> \bhttps?://[^\s/<>"'?\#,;]*[^\s<>"'?\#,;:}})\]|]*
        | \b(?!file:)[a-z][a-z0-9+.-]{{1,20}}://(?!/|home/|users/)[^\s/<>"'?\#,;]*[^\s<>"'?\#,;:}})\]|]*)
    | (?: (?P<option> (?<![\w-])-[a-z]+(?=[\\/])) | (?<![a-z0-9_.~\\/]) )
      (?P<home> (?: (?:\.\.[\\/]+)+ | (?:(?<![a-z0-9])(?-i:[A-Z]):)? [\\/]+ )
        (?:[\w.+@-]+[\\/]+){{0,3}}? (?:home|users) [\\/]+ [^\s\\/"'`<>|:;,)\]}}]+
        (?:(?:[ ][\w.]+){{1,2}}(?=[\\/]))? {_REST})
    | (?P<unc> (?<![\w\\]) (?:\\\\[\w.-]+\\[\w.$-]+(?:\\[\w.$-]+)* | \\{{4}}[\w.-]+(?:\\\\[\w.$-]+)+) )
    | (?P<windows> \b[a-z]:\\(?:[^\s\\"'<>|]+\\?)+ | (?<![a-z0-9])(?-i:[A-Z]):/+(?=[\w.])[\w.+@-]+(?:/+[\w.+@-]+)*/* )
    | (?P<posix> (?<![\w.~/<)\]-]) /+ (?:[\w.+@-]+/)+[\w.+@-]* )
    """
)


def refuse_secrets(text: str, name: str) -> None:
    """Raises ValueError if a text holds something that looks like a secret; the message does not repeat it.

    Args:
        text: What would go up.
        name: The file that it is of; of JSON the key is named, of other texts the line.
    """
    if name.endswith(".json"):
        try:
            content = json.loads(text)
        except ValueError:
            pass
        else:
            _refuse_in(content, name, "", "")
            return
    for place, what in _found(text):
        raise _refused(f"{name}, line {text.count(chr(10), 0, place) + 1},", what)


def refuse_in_words(words: Sequence[str], name: str) -> None:
    """Raises ValueError if the words of a command hold a secret, whatever the value of a secret's option looks like."""
    for word, after in zip(words, [*words[1:], "--"], strict=False):
        option, equals, value = word.partition("=")
        if not option.startswith("-") or not _KEY.fullmatch(option):
            value = ""
        elif not equals:
            value = "" if after.startswith("--") else after
        if len(value) > 3 and not _PLACEHOLDER.fullmatch(value):
            raise _refused(f"{name}, its command,", f"a secret under its name ({option})")
        for _, what in _found(word):
            raise _refused(f"{name}, its command,", what)


def _found(text: str) -> Iterator[tuple[int, str]]:
    """Where in a text there is what."""
    for what, pattern in _SECRETS.items():
        if found := re.search(pattern, text):
            yield found.start(), what
    for named in (*_NAMED.finditer(text), *_OPTION.finditer(text)):
        if not _PLACEHOLDER.fullmatch((value := named["quoted"] or named["bare"]).rstrip("\\*") or value):
            yield named.start(), "a secret under its name"
    for found in _WANDB.finditer(text):
        if not _NO_KEY.search(found["between"]):
            yield found.start(), "an API key"


def _refuse_in(content: Any, name: str, key: str, last: str) -> None:
    """Looks through JSON; `key` is where it stands, `last` the key that it stands under, lists aside."""
    if isinstance(content, dict):
        for each, value in content.items():
            for _, what in _found(each):
                raise _refused(f"{name}, a key{f' in {key}' if key else ''},", what)
            _refuse_in(value, name, f"{key}.{each}" if key else each, each)
    elif isinstance(content, list):
        if all(isinstance(each, str) for each in content):
            refuse_in_words(content, f"{name}, key {key}")
        for each in content:
            _refuse_in(each, name, key, last)
    elif isinstance(content, str) or (isinstance(content, int | float) and not isinstance(content, bool)):
        value = str(content)
        if _KEY.fullmatch(last) and len(value) >= _SHORTEST and not _PLACEHOLDER.fullmatch(value):
            raise _refused(f"{name}, key {key},", "a secret under its name")
        for _, what in _found(f"{last} {value}" if isinstance(content, str) else ""):
            raise _refused(f"{name}, key {key},", what)


def _refused(where: str, what: str) -> UserError:
    return UserError(f"{where} looks as if it held {what}; nothing was uploaded: take it out first")


def relative(text: str) -> str:
    """A text with absolute paths made relative; addresses such as `https://host/a` stay.

    A path in the working folder is given from there; of any other, the last two names are kept, but none of a home
    folder's own.
    """
    return _PLACE.sub(_replaced, text)


def _replaced(found: re.Match[str]) -> str:
    if found["url"]:
        return found[0]
    option = found["option"] or ""
    return option + _shorter(found[0][len(option) :])


def _shorter(path: str) -> str:
    if "\\" in path or re.match(r"[A-Za-z]:", path):
        parts = [part for part in re.sub(r"^[A-Za-z]:", "", path).replace("\\", "/").split("/") if part]
        parts = parts[1:] if path.startswith("\\\\") else parts
    else:
        here = str(Path.cwd())
        clean = os.path.normpath(path)
        clean = f"/{clean.lstrip('/')}" if clean.startswith("/") else clean
        if here != "/" and (clean == here or clean.startswith(here + "/")):
            return os.path.relpath(clean, here)
        parts = [part for part in PurePosixPath(clean).parts if part not in ("/", "..")]
    homes = [index for index, part in enumerate(parts) if part.lower() in ("home", "users")]
    parts = parts[homes[-1] + 2 :] if homes else parts
    return "/".join(parts[-2:]) or "~"


def scrub(content: Any) -> Any:
    """JSON content with absolute paths made relative, in keys as in values."""
    if isinstance(content, str):
        return relative(_shorter(content) if _alone(content) else content)
    if isinstance(content, dict):
        return {scrub(key): scrub(value) for key, value in content.items()}
    if isinstance(content, list):
        return [scrub(value) for value in content]
    return content


def _alone(text: str) -> bool:
    """Whether a text is an absolute path and nothing else, spaces in it or not."""
    return re.fullmatch(r"/+[^/\n\"]+(/+[^/\n\"]*)*|[A-Za-z]:[\\/][^\n\"]*|\\\\[^\n\"]+", text) is not None
