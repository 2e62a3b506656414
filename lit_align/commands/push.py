"""`lit-align push`: what a run left goes to the Hugging Face Hub."""

from __future__ import annotations


def run(
    folder: str,
    to: str,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
    message: str | None = None,
    licence: str = "apache-2.0",
    card: str | None = None,
    trajectories: str | None = None,
    out: str | None = None,
) -> None:
    """Uploads an agent, a reward model, trajectories or preferences to the Hugging Face Hub, in one commit.

    The token is the one that `hf auth login` left, or HF_TOKEN. What looks like a secret is refused, and absolute paths
    are made relative. After a connection broke, the same command goes on: what is there is not sent again.

    Args:
        folder: A stage's run folder, a model's folder, or a folder of trajectories or preferences.
        to: `user/name` on the Hub: a model repository for an agent or a reward model, otherwise a data set's.
        private: Make a new repository private.
        revision: Branch, made if it is not there; by default the main one.
        dry_run: List the files, with their sizes and where they come from, show the card, and upload nothing.
        message: Of the commit.
        licence: For the card, as the Hub names licences.
        card: Markdown file to upload as the card, in place of the one that is made from the run.
        trajectories: Of preferences: `user/name` of the data set with the trajectories that were compared.
        out: Folder to write what goes up into too, to be looked at; with `dry_run` nothing else is done.
    """
    from lit_align import hub
    from lit_align.errors import UserError
    from lit_align.sharing.plan import make_plan
    from lit_align.sharing.upload import keep, push
    from lit_align.sharing.what import find

    shared = find(folder)
    if hub.split_id(to)[1] is not None:
        raise UserError(f"{to} names a revision; expected user/name, and --revision for the branch")
    plan = make_plan(shared, to, licence, card, trajectories)
    if out is not None:
        keep(plan, out)
    print("\n".join([f"{shared.kind} -> {to} ({shared.repo_type})", *plan.lines()]))  # noqa: T201  what goes up
    if dry_run:
        print(f"\n--- README.md\n{plan.card}---\nnothing was uploaded")  # noqa: T201  asked for
        return
    done = push(plan, to, private, revision, message)
    what = "pushed as" if done.fresh else "nothing has changed since"
    print(f"{what} {done.repo_id}@{done.commit}\n{done.url}")  # noqa: T201  what the command did
