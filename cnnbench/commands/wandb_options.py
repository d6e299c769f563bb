"""The options of every command that logs to Weights & Biases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cnnbench.options import option

if TYPE_CHECKING:
    from cnnbench.report.tracking import Connection

WandbMode = Literal["off", "offline", "online"]
WORDS = {
    "project": "W&B project (default: WANDB_PROJECT, else cnnbench).",
    "entity": "W&B user or team (default: WANDB_ENTITY, else the user's own default).",
    "group": "W&B group of the runs (default: WANDB_RUN_GROUP, else the name of the folder).",
    "tags": "W&B tags of every run, such as cpu,first (default: WANDB_TAGS).",
    "notes": "Text about every run in W&B (default: WANDB_NOTES).",
}
"""Help of the options that say where runs are logged, by the name behind ``wandb_``."""


@dataclass(frozen=True, kw_only=True)
class WandbOptions:
    """Whether and where a command logs to Weights & Biases."""

    wandb: WandbMode = option("Log to W&B too; without a key or a server it is offline.", default="off")
    wandb_project: str | None = option(WORDS["project"], default=None, metavar="NAME")
    wandb_entity: str | None = option(WORDS["entity"], default=None, metavar="NAME")
    wandb_group: str | None = option(WORDS["group"], default=None, metavar="NAME")
    wandb_tags: tuple[str, ...] = option(WORDS["tags"], default=(), metavar="A,B")
    wandb_notes: str | None = option(WORDS["notes"], default=None, metavar="TEXT")

    def connect(self) -> Connection:
        """Return how to log; a key or a server that is missing is said in one line.

        Raises:
            UserError: The package wandb is missing.
        """
        from cnnbench.report.tracking import Target, connect

        target = Target(
            project=self.wandb_project,
            entity=self.wandb_entity,
            group=self.wandb_group,
            tags=self.wandb_tags,
            notes=self.wandb_notes,
        )
        return connect(self.wandb, target)
