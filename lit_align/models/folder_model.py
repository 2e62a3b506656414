"""What an agent and a reward model have in common: a folder they live in, and a name on the Hub."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from lit_align import hub
from lit_align.models.folder import load_folder


class FolderModel(nn.Module):
    """A network that is kept as a folder: `config.json` and `model.safetensors`."""

    kind: str
    """What `config.json` calls it, and the name of the folder that a run leaves it in."""

    def save(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`; the folder appears whole or not at all."""
        raise NotImplementedError

    @classmethod
    def _build(cls, content: dict[str, Any]) -> Self:
        """The network that a `config.json` describes, its weights drawn anew."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", random_init: bool = False) -> Self:
        """Reads a model's folder.

        Args:
            folder: A folder that `save` wrote, or `user/name` on the Hub.
            device: Where the weights go.
            random_init: Take the architecture and the spaces only; the weights are drawn anew.

        Raises:
            ValueError: The folder is missing, is of another kind, or its weights do not fit its config.
        """
        model = load_folder(folder, cls.kind, cls._build, random_init)
        assert isinstance(model, cls)
        return model.to(device)

    @classmethod
    def from_pretrained(
        cls, name: str, revision: str | None = None, token: str | None = None, device: str | torch.device = "cpu"
    ) -> Self:
        """Reads a model from the Hugging Face Hub.

        Args:
            name: `user/name`, `user/name@revision`, or a folder.
            revision: A branch, a tag or a commit; the main branch by default.
            token: By default the one that `hf auth login` or HF_TOKEN left.
            device: Where the weights go.

        Raises:
            ValueError: See `load` and `lit_align.hub.fetch`.
        """
        return cls.load(hub.fetch(name, "model", revision, token), device)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool = False,
        revision: str | None = None,
        message: str | None = None,
        token: str | None = None,
        licence: str = "apache-2.0",
        card: str | None = None,
    ) -> str:
        """Uploads the model to the Hugging Face Hub, in one commit, with a card.

        `lit-align push` of the run's folder makes a fuller card.

        Args:
            repo_id: `user/name`; made if it is not there.
            private: Make a new repository private.
            revision: Branch, made if it is not there; the main one by default.
            message: Of the commit.
            token: By default the one that `hf auth login` or HF_TOKEN left.
            licence: For the card.
            card: Markdown file to upload as the card in place of the one that is made.

        Returns:
            The commit, to be given as a revision.

        Raises:
            ValueError: The token may not write there, something looks like a secret, or the connection broke.
        """
        # By name: what makes the card stands above the models.
        upload = importlib.import_module("lit_align.sharing.upload")
        with tempfile.TemporaryDirectory(prefix="lit-align-") as scratch:
            folder = Path(scratch) / self.kind
            self.save(folder)
            plan = upload.plan_model(folder, repo_id, licence, card)
            commit: str = upload.push(plan, repo_id, private, revision, message, token).commit
        return commit
