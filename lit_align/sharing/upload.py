"""Sending to the Hub: one commit for a push, from which a broken upload goes on."""

from __future__ import annotations

import fnmatch
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_align import hub
from lit_align.errors import UserError
from lit_align.files import empty_place
from lit_align.sharing.plan import Plan, make_plan
from lit_align.sharing.what import Shared

if TYPE_CHECKING:
    from huggingface_hub import HfApi

STALE = "data/*.parquet"
"""Files in a data set's repository that a push replaces: shards that it no longer has go, in the same commit."""


@dataclass(frozen=True)
class Pushed:
    """Where something went.

    Attributes:
        repo_id: `user/name`.
        commit: The commit that holds it.
        url: Of that commit, for people.
        fresh: Whether anything had changed; else the commit is the one that was there.
    """

    repo_id: str
    commit: str
    url: str
    fresh: bool


def push(
    plan: Plan,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> Pushed:
    """Uploads what a plan lists, in one commit; the repository and the branch are made if they are not there.

    What is there is looked at first: where a file can run code, nothing is made either.

    `create_commit` and not `upload_folder` or `upload_large_folder`, which make several commits of many files: readers
    never meet half of a data set. What was uploaded before a connection broke is not sent again, since the Hub asks for
    the content of those files only that it does not have (by their sha256).

    Args:
        plan: The files.
        repo_id: `user/name`.
        private: Make a new repository private; one that is there stays as it is.
        revision: Branch; None is the main one.
        message: Of the commit.
        token: By default the one that `hf auth login` or HF_TOKEN left.

    Raises:
        ValueError: There is something that may not go up, the token may not write there, or the connection broke.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    _, named = hub.split_id(repo_id)
    if named is not None:
        raise UserError(f"{repo_id} names a revision; expected user/name, and the branch as the revision")
    shared = plan.shared
    kind, api = shared.repo_type, hub.api(token)
    with hub.plainly(repo_id, kind, revision):
        before, there = _look(api, repo_id, kind, revision)
        if before is None:
            api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True)
        if before is None or revision is not None:
            if revision is not None:
                api.create_branch(repo_id, repo_type=kind, branch=revision, exist_ok=True)
            before = api.repo_info(repo_id, repo_type=kind, revision=revision)
            there = hub.names_of(before)
            hub.refuse_code(there, repo_id, uploading=True)
        sent = {item.name for item in plan.items}
        stale = [name for name in there if kind == "dataset" and fnmatch.fnmatch(name, STALE) and name not in sent]
        done = api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(name) for name in stale),
                *(CommitOperationAdd(item.name, item.content) for item in plan.items),
            ],
            repo_type=kind,
            revision=revision,
            commit_message=message or f"{shared.kind.replace('_', ' ')} by lit-align",
        )
    commit = str(done.oid)
    hub.note_source(shared.folder, repo_id, commit)
    return Pushed(repo_id, commit, str(done.commit_url), commit != before.sha)


def _look(api: HfApi, repo_id: str, kind: hub.RepoType, revision: str | None) -> tuple[Any, list[str]]:
    """What is there before anything is made: None without a repository, its main branch without that revision."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        try:
            found = api.repo_info(repo_id, repo_type=kind, revision=revision)
        except RevisionNotFoundError:
            found = api.repo_info(repo_id, repo_type=kind)
    except RepositoryNotFoundError:
        return None, []
    names = hub.names_of(found)
    hub.refuse_code(names, repo_id, uploading=True)
    return found, names


def keep(plan: Plan, folder: str | Path) -> None:
    """Writes what goes up into a folder, to be looked at.

    Raises:
        ValueError: The folder holds something already.
    """
    target = empty_place(folder, f"'{folder}'")
    for item in plan.items:
        path = target / item.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(item.content, bytes):
            path.write_bytes(item.content)
        else:
            shutil.copyfile(item.content, path)


def plan_model(folder: Path, repo_id: str, licence: str, card: str | None) -> Plan:
    """What goes up of a model without a run, in a folder that is called by its kind."""
    return make_plan(Shared("agent" if folder.name == "agent" else "reward_model", folder), repo_id, licence, card)
