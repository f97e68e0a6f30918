"""The index of the repository: the state of every version, in the form of the Open Inference Protocol."""

from __future__ import annotations

from foldserve.service.engine.repository import Model, Repository

# Maps each state of a version that is not ready to the name of this state in the protocol.
_STATES = {"refused": "UNAVAILABLE", "loading": "LOADING", "unloaded": "UNAVAILABLE"}


def repository_index(repository: Repository, *, only_ready: bool) -> list[dict[str, str]]:
    """Return one entry for each version. only_ready: whether to leave out versions that are not ready."""
    unreadable = [
        {"name": name, "state": "UNAVAILABLE", "reason": "the folder of the model can't be read"}
        for name in repository.names()
        if not repository.versions(name) and not only_ready
    ]
    return unreadable + [
        {
            "name": name,
            "version": str(version),
            "state": "READY" if (failure := repository.failure(found)) is None else "UNAVAILABLE",
            "reason": failure or "",
        }
        if isinstance(found, Model)
        else {"name": name, "version": str(version), "state": _STATES[found.state], "reason": found.reason}
        for name in repository.names()
        for version, found in sorted(repository.versions(name).items())
        if (isinstance(found, Model) and repository.failure(found) is None) or not only_ready
    ]
