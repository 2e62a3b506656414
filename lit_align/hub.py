"""The Hugging Face Hub: what an id is, how a model or a data set comes from there, and what went wrong."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from lit_align.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RepoType = Literal["model", "dataset"]
KINDS: tuple[RepoType, RepoType] = ("model", "dataset")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"({_NAME}/{_NAME})(?:@([^@\s]+))?")
_SHA = re.compile(r"[0-9a-f]{40}")
_log = logging.getLogger("lit_align.hub")

_here: dict[tuple[object, ...], Path] = {}  # what this process has asked for by a commit, which means the same for ever

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
SOURCE = "hub.json"
"""In a folder: from which repository it was pulled, or to which it was pushed. It never goes up."""

NEEDED = {"model": ("config.json", "model.safetensors"), "dataset": ("meta.json", "data/*.parquet")}
"""What is downloaded to be used, by the kind of repository."""

BESIDE = ("README.md", "*.json", "*.png", "*.jpg", "*.gif", "*.mp4")
"""What `lit-align pull` downloads too: the card and its pictures."""

REFUSED = (
    *(".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".h5", ".hdf5", ".keras"),
    *(".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".ps1", ".jar", ".wasm", ".ipynb", ".js"),
    *(".msgpack", ".pb", ".tar", ".zip", ".gz", ".tgz", ".7z", ".whl", ".egg"),
)
"""Names of files that can run code when they are loaded, or in which such files may be packed."""


def is_id(text: str) -> bool:
    """Whether a text is `user/name` or `user/name@revision`, and nothing on this disk has that name."""
    return _ID.fullmatch(text) is not None and not Path(text).exists()


def split_id(text: str) -> tuple[str, str | None]:
    """`user/name` and the revision of `user/name@revision`, None where it names none.

    Raises:
        ValueError: The text is no id.
    """
    found = _ID.fullmatch(text)
    if found is None:
        raise UserError(f"{text!r} is no name on the Hub; expected user/name, or user/name@revision")
    return found[1], found[2]


def fetch(
    name: str | Path,
    kind: RepoType = "model",
    revision: str | None = None,
    token: str | None = None,
    whole: bool = False,
) -> Path:
    """A folder with a model or a data set: the one on this disk, or one from the Hub, which is kept in its cache.

    Args:
        name: A folder, which is returned as it is, or `user/name`, or `user/name@revision`.
        kind: What the repository holds.
        revision: A branch, a tag or a commit; in place of `@revision`.
        token: Of the Hub; by default the one that `hf auth login` or HF_TOKEN left.
        whole: Download the card and its pictures too.

    Raises:
        ValueError: There is no such repository or revision, it may not be read, it holds files that can run code (then
            nothing is downloaded), or the Hub cannot be reached and the cache does not hold it.
    """
    if isinstance(name, Path) or not is_id(name):
        if revision is not None:
            raise UserError(f"'{name}' is no name on the Hub, and has no revision {revision!r}; leave it out")
        return Path(name)
    repo_id, named = split_id(name)
    if revision is not None and named is not None and revision != named:
        raise UserError(f"{name} names the revision {named!r}, and revision is {revision!r}; give one of them")
    return _download(repo_id, kind, revision or named, token, whole)


def pin(name: str, kind: RepoType = "model") -> str:
    """`user/name` as `user/name@commit`, which means the same for ever; anything else as it is.

    Raises:
        ValueError: See `fetch`.
    """
    if not is_id(name):
        return name
    return f"{split_id(name)[0]}@{fetch(name, kind).name}"


def called(name: str | Path) -> str:
    """What people call a model: `user/name`, or the folder of the run that left it."""
    if not isinstance(name, Path) and is_id(name):
        return split_id(name)[0]
    return Path(name).absolute().parent.name


def kind_of(repo_id: str, revision: str | None = None, token: str | None = None) -> RepoType:
    """Whether a repository holds a model or a data set.

    Raises:
        ValueError: There is neither, or both of that name, or the Hub cannot be asked and the cache holds neither.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError  # type: ignore[attr-defined]

    found: list[RepoType] = []
    for kind in KINDS:
        with plainly(repo_id, kind, revision):
            try:
                if not constants.HF_HUB_OFFLINE:
                    api(token).repo_info(repo_id, repo_type=kind, revision=revision)
                    found.append(kind)
                    continue
            except RepositoryNotFoundError:
                continue
            except (HTTPError, ConnectionError) as error:
                if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                    raise
            cache = Path(cache_folder() or constants.HF_HUB_CACHE)
            found += [kind] if (cache / f"{kind}s--{repo_id.replace('/', '--')}").is_dir() else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"there is a model and a data set {repo_id}; say which is meant with --kind model or dataset")
    _download(repo_id, "model", revision, token, False)  # which says what is wrong
    raise UserError(f"there is neither a model nor a data set {repo_id} on the Hub")


def source_of(name: str | Path) -> tuple[str, str] | None:
    """From which repository and commit a folder is, or to which it was pushed: `("user/name", commit)`.

    None where that is not known. Nothing is downloaded: a name on the Hub is looked up in the cache only if it is one
    that `pin` returned.
    """
    if not isinstance(name, Path) and is_id(name):
        repo_id, revision = split_id(name)
        return (repo_id, revision) if revision and _SHA.fullmatch(revision) else None
    try:
        content = json.loads((Path(name) / SOURCE).read_text())
        return str(content["repository"]), str(content["commit"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note_source(folder: Path, repo_id: str, commit: str) -> None:
    """Writes what `source_of` reads, where the folder may be written to."""
    try:
        (folder / SOURCE).write_text(json.dumps({"repository": repo_id, "commit": commit}, indent=2) + "\n")
    except OSError as error:
        _log.warning("%s could not be written (%s); later runs will not name %s", folder / SOURCE, error, repo_id)


def api(token: str | None = None) -> HfApi:
    """The Hub's client, at HF_ENDPOINT as it is now."""
    from huggingface_hub import HfApi

    from lit_align import __version__

    return HfApi(endpoint=_endpoint(), token=token, library_name="lit-align", library_version=__version__)


def names_of(found: Any) -> list[str]:
    """The names of a repository's files, of what `repo_info` returned."""
    return [file.rfilename for file in getattr(found, "siblings", None) or ()]


def refuse_code(names: Iterable[str], repo_id: str, uploading: bool = False) -> None:
    """Raises ValueError if one of a repository's files can run code when it is loaded, such as a pickle."""
    bad = sorted(name for name in names if PurePosixPath(name.lower()).suffix in REFUSED)
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        if uploading:
            raise UserError(
                f"{repo_id} holds {bad[0]}{more}, which can run code when it is loaded; remove it there first (or push "
                "to another name); nothing was uploaded"
            )
        raise UserError(
            f"{repo_id} holds {bad[0]}{more}, which can run code when it is loaded; nothing was downloaded. Expected "
            "safetensors, JSON, Parquet, pictures and videos only: ask its owner to remove it, or give the revision of "
            "a commit without it"
        )


def _endpoint() -> str | None:
    return os.environ["HF_ENDPOINT"].rstrip("/") if os.environ.get("HF_ENDPOINT") else None


def cache_folder() -> str | None:
    """Where downloads are kept, by the environment as it is now; None leaves huggingface_hub's own place."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return cache
    return str(Path(home, "hub")) if (home := os.environ.get("HF_HOME")) else None


def _download(repo_id: str, kind: RepoType, revision: str | None, token: str | None, whole: bool) -> Path:
    from huggingface_hub import constants, get_token, snapshot_download

    wanted = [*NEEDED[kind], *(BESIDE if whole else ())]
    asked = (repo_id, kind, revision, token or get_token(), whole, cache_folder(), _endpoint())
    if (there := _here.get(asked)) and there.is_dir():
        return there
    with plainly(repo_id, kind, revision):
        reached = not constants.HF_HUB_OFFLINE and _look(repo_id, kind, revision, token)
        folder = Path(
            snapshot_download(
                repo_id,
                repo_type=kind,
                revision=revision,
                cache_dir=cache_folder(),
                endpoint=_endpoint(),
                token=token,
                allow_patterns=wanted,
                ignore_patterns=[SOURCE],
                local_files_only=not reached,
            )
        )
    if reached and revision is not None and _SHA.fullmatch(revision):
        _here[asked] = folder
    return folder


def _look(repo_id: str, kind: RepoType, revision: str | None, token: str | None) -> bool:
    """Checks the names of a repository's files before any is downloaded; False if the Hub cannot be reached."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    try:
        found = api(token).repo_info(repo_id, repo_type=kind, revision=revision)
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise
        _log.warning("the Hub answers %s; looking for %s in the cache", error.response.status_code, repo_id)
        return False
    except (HTTPError, ConnectionError) as error:
        _log.warning("the Hub cannot be reached (%s); looking for %s in the cache", error, repo_id)
        return False
    names = names_of(found)
    refuse_code(names, repo_id)
    lacking = [name for name in NEEDED[kind] if "*" not in name and name not in names]
    if lacking:
        raise UserError(
            f"{repo_id} holds no {' and no '.join(lacking)}; expected a {kind} that 'lit-align push' made (found "
            f"{', '.join(sorted(names)[:5]) or 'no file'})"
        )
    return True


@contextmanager
def plainly(repo_id: str, kind: RepoType, revision: str | None = None) -> Iterator[None]:
    """Turns what the Hub's client raises into a UserError that says what to do."""
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except UserError:
        raise
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} is no name on the Hub: {error}") from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise UserError(_say(error, repo_id, kind, revision)) from error


def _root(error: BaseException) -> BaseException:
    """What the Hub answered, of an error that was raised from it."""
    cause = error.__cause__
    while cause is not None and not hasattr(error, "response"):
        error, cause = cause, cause.__cause__
    return error


def _unreached(error: BaseException | None) -> bool:
    """Whether no connection was made at all; the names are those of the HTTP client, whichever it is."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if type(error).__name__ in ("ConnectError", "ConnectTimeout", "ConnectionRefusedError"):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say(raised: Exception, repo_id: str, kind: RepoType, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    error: Any = _root(raised)
    where = _endpoint() or constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id} is gated: ask for access at {where}/{repo_id}, then {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}; expected one of its branches, tags or commits"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return (
            f"{repo_id}{f'@{revision}' if revision else ''} is not in the cache, there is no folder of that name here, "
            f"and the Hub ({where}) cannot be reached or HF_HUB_OFFLINE is set: connect once, or name a folder"
        )
    if _unreached(raised):
        return (
            f"the Hub ({where}) cannot be reached: {' '.join(str(error).split())[:300] or type(error).__name__}; check "
            "the connection (and HF_ENDPOINT, if it is set), then do the same again"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return (
            f"there is no {kind} {repo_id} on the Hub ({where}) that you may read, and no folder of that name here; "
            f"check the name; if it is private, {LOG_IN}"
        )
    if status == 401:
        return f"the Hub ({where}) does not know your token; {LOG_IN}"
    if status == 403:
        return f"your token may not do that with {repo_id}; take one with write access to it and {LOG_IN}"
    # What the client made of an answer says more than the answer, but for the file that it was at.
    said = raised if isinstance(raised, ValueError) else error
    text = (" ".join(str(said).split()) or type(said).__name__)[:300]
    if status in (429, 500, 502, 503, 504):
        return f"the Hub ({where}) answered {status} for {repo_id}: {text}; try again later"
    if status is not None or isinstance(raised, ValueError):
        return f"the Hub ({where}) refuses this for {repo_id}: {text}"
    return f"{repo_id}: the transfer from or to the Hub ({where}) broke off: {text}; do the same again to go on"
