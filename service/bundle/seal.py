"""The seal of a manifest: SHA-256 digests of its values, which show any later change and name the changed field.

This module takes a manifest as parsed JSON, and does not depend on the schema or on files. A digest is not a signature.
The seal shows damage and careless edits. A person who changes a manifest on purpose can also compute a new seal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

FIELD = "seal"

_MOST_NAMED = 4  # a message names at most this number of changed fields


def compute(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seal of a manifest, as JSON values.

    content: the whole manifest. If the manifest has a seal, the computation ignores this seal.

    `digest` is the digest of the whole manifest. `parts` has a digest for each field, such as `labels`. If a field is
    an object or an array of objects, `parts` has a digest for each member: `certificate.tolerance`, `features.3`.
    """
    sealed = {field: value for field, value in content.items() if field != FIELD}
    return {"digest": _digest(sealed), "parts": {path: _digest(value) for path, value in _parts(sealed)}}


def find_changes(content: Mapping[str, Any]) -> str | None:
    """Return a text with the names of the fields that differ from the seal; None if no field differs."""
    recorded, computed = content.get(FIELD), compute(content)
    if recorded == computed:
        return None
    if not isinstance(recorded, dict) or not isinstance(parts := recorded.get("parts"), dict):
        return FIELD
    paths = dict.fromkeys((*computed["parts"], *parts))
    changed = [path for path in paths if computed["parts"].get(path) != parts.get(path)]
    if not changed or recorded.get("digest") == computed["digest"]:
        return FIELD  # the sealed values are unchanged, so the seal itself has changed
    more = f" and {len(changed) - _MOST_NAMED} more" if len(changed) > _MOST_NAMED else ""
    return ", ".join(map(_printable, changed[:_MOST_NAMED])) + more


def _parts(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for field, value in content.items():
        if isinstance(value, dict) and value:
            yield from ((f"{field}.{name}", member) for name, member in value.items())
        elif isinstance(value, list) and value and all(isinstance(member, dict) for member in value):
            yield from ((f"{field}.{index}", member) for index, member in enumerate(value))
        else:
            yield field, value


def _digest(value: Any) -> str:
    """Hash the canonical form of a value: JSON with sorted names, no spaces, only ASCII, and numbers as in Python."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _printable(path: str) -> str:
    """Return a path that fits into one line of a message. A damaged manifest may have any text as a name."""
    return path if path.isascii() and path.isprintable() and len(path) <= 80 else "a field with another name"
