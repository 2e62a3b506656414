"""`lit-align pull`: an agent, a reward model, trajectories or preferences come from the Hugging Face Hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal


def run(
    name: str, out: str | None, revision: str | None = None, kind: Literal["model", "dataset"] | None = None
) -> None:
    """Downloads what `lit-align push` uploaded into a folder, and reads it.

    Nothing is downloaded from a repository that holds files that can run code, such as pickles. After a connection
    broke, the same command goes on with the files that are lacking.

    Args:
        name: `user/name` on the Hub, or `user/name@revision`.
        out: Folder to write, the second word; it must not exist or be empty.
        revision: A branch, a tag or a commit; by default the main branch.
        kind: Which is meant, where there is a model and a data set of that name.
    """
    from lit_align import hub
    from lit_align.errors import UserError
    from lit_align.files import beside, empty_place, put_folder
    from lit_align.sharing.plan import check
    from lit_align.sharing.what import find

    if out is None:
        raise UserError(f"the folder to write is lacking; it is the second word: lit-align pull {name} FOLDER")
    target = empty_place(out, f"--out {out}")
    repo_id, named = hub.split_id(name)
    if Path(name).exists():
        raise UserError(f"'{name}' is a folder here, which hides the name on the Hub: pull from another folder")
    kind = kind or hub.kind_of(repo_id, revision or named)
    cached = hub.fetch(name, kind, revision, whole=True)
    with beside(target) as scratch:
        aside = scratch / (target.name or "pulled")
        shutil.copytree(cached, aside, ignore=shutil.ignore_patterns(".*", hub.SOURCE))
        shared = find(aside)
        check(shared)
        hub.note_source(aside, repo_id, cached.name)
        put_folder(aside, target)
    print(f"{out}: {shared.kind} of {repo_id}@{cached.name}")  # noqa: T201  what the command did
