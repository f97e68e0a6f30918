"""The policy of each model: the versions to keep, their labels, and the conditions of a swap.

This module owns the schema of the file of policies. An example of a policy file:

    [default]                       # for every model that has no table of its own
    versions = "latest 2"           # or "all", or [3, 5]

    [models.digits]
    labels = {stable = 5, canary = 6}
    canary = 0.1                    # share of the requests without a version

    [models.digits.swap]
    policy = "shadow"
    max_changed = 0.02

This module does not find out which versions exist.
"""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from foldserve.service.bundle import NAME
from foldserve.service.errors import SettingsError
from foldserve.service.live.plan import Trial

log = logging.getLogger("foldserve")

STABLE, CANARY = "stable", "canary"
LABEL = re.compile(r"[a-z][a-z0-9_-]{0,31}")

SwapName = Literal["always", "golden", "shadow"]
Share = Annotated[float, Field(ge=0, le=1)]


def _check_label(label: str) -> str:
    if not LABEL.fullmatch(label):
        raise ValueError("a label has small letters, digits, - and _, and begins with a letter")
    return label


class SwapPolicy(BaseModel):
    """The conditions that a new version must meet before it replaces the active version.

    policy: with `always`, a new version needs only the checks that every load runs. With `golden`, the new version must
    also have the same interface as the active version. The new version's outputs for the golden rows of the active
    version must also be finite. With `shadow`, the outputs for the last live rows are also compared.
    max_changed: the share of rows that may get another label. max_changed_in_class: for each label of the old version,
    the share of the rows with this label that may get another label. max_change: the largest allowed change of a
    probability; None for no limit. In a regression, max_change is the largest change of a value, divided by the spread
    of the old values. max_latency_ratio: the new version's run time, divided by the old version's run time, must not
    exceed this number; None for no limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    policy: SwapName | None = None
    allow_interface_change: bool = False
    max_changed: Share = 0.05
    max_changed_in_class: Share = 0.2
    max_change: Annotated[float, Field(ge=0)] | None = None
    max_latency_ratio: Annotated[float, Field(gt=0)] | None = 3.0

    def trial(self, against: int, default: SwapName) -> Trial | None:
        """Return the comparison with the version `against`; None if the version need not be compared."""
        policy = self.policy or default
        if policy == "always":
            return None
        limits = self.model_dump(exclude={"policy"})
        return Trial(against=against, shadow=policy == "shadow", **limits)


class ModelPolicy(BaseModel):
    """The policy of one model. canary: the label `canary` answers this share of the requests that name no version."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    versions: (
        Literal["all"]
        | Annotated[str, Field(pattern="^latest [1-9][0-9]{0,3}$")]
        | tuple[Annotated[int, Field(ge=1)], ...]
    ) = "all"
    labels: dict[Annotated[str, AfterValidator(_check_label)], Annotated[int, Field(ge=1)]] = {}
    canary: Share = 0.0
    swap: SwapPolicy = SwapPolicy()

    @model_validator(mode="after")
    def _check_canary(self) -> ModelPolicy:
        if self.canary and CANARY not in self.labels:
            raise ValueError("a share for the canary needs the label `canary`")
        if self.versions == ():
            raise ValueError("the list of versions is empty")
        return self

    def wanted(self, usable: Collection[int]) -> set[int]:
        """Return the versions to keep. usable: the versions that are not refused."""
        if self.versions == "all":
            kept = set(usable)
        elif isinstance(self.versions, str):
            kept = set(sorted(usable)[-int(self.versions.removeprefix("latest ")) :])
        else:
            kept = set(self.versions)
        return kept | set(self.labels.values())

    @property
    def described(self) -> str:
        """A text that describes which versions the policy keeps."""
        if isinstance(self.versions, str):
            return f"the policy keeps {self.versions}"
        return f"the policy keeps {', '.join(map(str, self.versions))}"


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    default: ModelPolicy = ModelPolicy()
    models: dict[Annotated[str, Field(pattern=f"^{NAME.pattern}$")], ModelPolicy] = {}


class Policies:
    """The policies of all models. The file is read again after it has changed.

    swap: the swap policy of a model if the file sets none for this model. Raises `SettingsError` if the file is not
    valid.
    """

    def __init__(self, file: Path | None, swap: SwapName) -> None:
        self._file = file
        self.swap: SwapName = swap
        self._content = _File()
        self._text: bytes | None = None
        self._error = ""
        if file is not None:
            self._read(file)

    def of(self, name: str) -> ModelPolicy:
        """Return the policy of a model."""
        return self._content.models.get(name, self._content.default)

    def refresh(self, names: Iterable[str]) -> set[str]:
        """Read the file again.

        Returns the models in `names` whose policy has changed. If the file is wrong, the policies stay the same.
        """
        if self._file is None:
            return set()
        before = {name: self.of(name) for name in names}
        try:
            self._read(self._file)
            self._error = ""
        except SettingsError as error:
            if str(error) != self._error:
                self._error = str(error)
                log.error("the policies stay as they were: %s", error)
        return {name for name, policy in before.items() if self.of(name) != policy}

    def unused(self, found: Mapping[str, Collection[int]]) -> list[str]:
        """Return a warning for each model or version that the file names but that does not exist.

        found: the existing versions by model.
        """
        sentences = []
        for name, policy in self._content.models.items():
            if name not in found:
                sentences.append(f"the policy names the model {name!r}, which does not exist")
                continue
            for label, number in policy.labels.items():
                if number not in found[name]:
                    sentences.append(f"the label {label!r} of {name} names version {number}, which does not exist")
        return sentences

    def _read(self, file: Path) -> None:
        try:
            text = file.read_bytes()
        except OSError as error:
            raise SettingsError(f"can't read {file}: {error.strerror}") from error
        if text == self._text:
            return
        self._text = text
        try:
            self._content = _File.model_validate(tomllib.loads(text.decode()))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file} is not TOML: {error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place, message = list(map(str, first["loc"])), first["msg"]
            if "versions" in place:  # pydantic's message would name only one of the allowed types
                del place[place.index("versions") + 1 :]
                message = 'expected "all", "latest N" or a list of versions, such as [3, 5]'
            raise SettingsError(f"{file}: {'.'.join(place)}: {message}") from error
