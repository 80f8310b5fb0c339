"""Passwords in URLs, taken out of what workers say about themselves."""

from __future__ import annotations

import re
from typing import Any

_PASSWORD = re.compile(r"(://[^/@\s]*?:)[^/@\s]*@")


def masked(value: Any) -> Any:
    """A copy of JSON-like data with `***` for the password of every URL in it.

    kombu takes the password out of what it tells of a connection, except where the server is a Unix socket:
    there the whole URL is its host name.
    """
    if isinstance(value, str):
        return _PASSWORD.sub(r"\1***@", value)
    if isinstance(value, dict):
        return {key: masked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item) for item in value]
    return value
