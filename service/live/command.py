"""The commands of operators, such as a rollback, and their outcomes as messages between processes."""

from __future__ import annotations

from typing import Literal

from foldserve.service import errors
from foldserve.service.live.plan import Message

Kind = Literal["load", "unload", "rollback", "promote"]

_ERRORS = {kind.__name__: kind for kind in (errors.UnknownModel, errors.LoadRefused, errors.ModelBusy)}


class Command(Message):
    """One command for one model.

    load: load the model, or one version. load also tries refused versions again. unload: stop serving the model, or one
    version. promote: let a version answer requests, even if its comparison has failed. rollback: let the previous
    version answer requests again. If `version` is given, rollback lets this earlier version answer requests again.
    """

    kind: Kind
    name: str
    version: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + ("" if self.version is None else f" {self.version}")


class CommandOutcome(Message):
    """The outcome of a command. error: the name of the error's class; None if the command had no error."""

    error: str | None = None
    text: str = ""

    def raise_error(self) -> None:
        """Raise the error of the command, if the command has an error."""
        if self.error is not None:
            raise _ERRORS.get(self.error, errors.LoadRefused)(self.text)


def outcome_of(error: BaseException | None) -> CommandOutcome:
    """Describe the exception of a command; None if the command was executed."""
    return CommandOutcome() if error is None else CommandOutcome(error=type(error).__name__, text=str(error))
