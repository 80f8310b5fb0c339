"""What a server's or a connection's error means to people, and what to do next."""

from __future__ import annotations

import re
from dataclasses import dataclass

from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from registry.errors import LedgerFull, LedgerUnavailable, LedgerUnfit

_PIPELINE = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)
#: Inside a script the server reports it without its code.
_FORBIDDEN = re.compile(
    "NOPERM|[Nn]o permissions|can't run this command|can't access at least one of the keys"
)
_CLOSED = re.compile("Connection closed by server|Connection reset by peer|Broken pipe|EOF occurred", re.I)
_COMMAND = re.compile(r"'([a-z0-9|_.-]+)' command")
#: The settings that name servers, for messages that cannot know which of them is meant.
_URLS = "V5_REDIS_URL (V5_BLOB_URLS, V5_BROKER_URL)"


@dataclass(frozen=True)
class _Meaning:
    """An error's words, the class it becomes, and what it means; `{who}` and `{error}` are filled in."""

    words: str
    kind: type[LedgerUnavailable]
    said: str


#: The first whose words are in the error counts.
_MEANINGS = (
    _Meaning(
        "CERTIFICATE_VERIFY_FAILED",
        LedgerUnfit,
        "the certificate of {who} is not trusted: {error}. Give the authority that signed it with "
        "V5_REDIS_TLS_CA=ca.pem, and use the host name that the certificate is for",
    ),
    _Meaning(
        "CERTIFICATE_REQUIRED",
        LedgerUnfit,
        "{who} asks for a client certificate; give it with V5_REDIS_TLS_CERT and V5_REDIS_TLS_KEY",
    ),
    _Meaning(
        "ALERT",
        LedgerUnfit,
        "{who} refused our side of TLS: {error}; check V5_REDIS_TLS_CERT and V5_REDIS_TLS_KEY",
    ),
    _Meaning("[SSL", LedgerUnfit, "{who} does not speak TLS: {error}; check the port, or write redis://"),
    _Meaning(
        "protected mode",
        LedgerUnfit,
        "{who} is in protected mode and refuses other machines; set a password (or an ACL user) there",
    ),
    _Meaning(
        "without any password configured",
        LedgerUnfit,
        "{who} knows no password, but the URL gives one; take it out of " + _URLS,
    ),
    _Meaning(
        "Authentication required",
        LedgerUnfit,
        "{who} wants a login; write redis://USER:PASSWORD@HOST in " + _URLS,
    ),
    _Meaning(
        "HELLO must be called",
        LedgerUnfit,
        "{who} wants a login; write redis://USER:PASSWORD@HOST (or redis://:PASSWORD@HOST) in " + _URLS,
    ),
    _Meaning(
        "MISCONF", LedgerUnavailable, "{who} refuses writes: {error}; is its disk full? Its own log says more"
    ),
    _Meaning("NOREPLICAS", LedgerUnavailable, "{who} refuses writes: {error}; its replicas must come back"),
    _Meaning("MASTERDOWN", LedgerUnfit, "{who} is a replica: {error}; name its primary in " + _URLS),
    _Meaning("CLUSTERDOWN", LedgerUnfit, "{who} is a cluster, which is not supported: {error}"),
)


def explained(error: RedisError, who: str = "Redis") -> LedgerFull | LedgerUnavailable | None:
    """The error to raise instead; None for a script's or a command's own error, which is a defect of ours.

    `who` names the server in the message.
    """
    # The command's arguments are data; they stay out of messages.
    text = _PIPELINE.sub("", str(error)).rstrip(".")
    if isinstance(error, OutOfMemoryError) or "OOM" in text:
        # A script that hits the limit inside reports it as its own error.
        return LedgerFull(f"{who} is at its maxmemory and refuses writes: {text}")
    if isinstance(error, NoPermissionError) or _FORBIDDEN.search(text):
        return LedgerUnfit(f"{who} does not permit its user what the fleet needs: {text}; {_grant(text)}")
    if isinstance(error, ReadOnlyError) or "READONLY" in text:
        return LedgerUnfit(f"{who} is a replica and refuses writes; name its primary in {_URLS}")
    for meaning in _MEANINGS:
        if meaning.words in text:
            return meaning.kind(meaning.said.format(who=who, error=text))
    if isinstance(error, AuthenticationError):
        return LedgerUnfit(f"{who} refused the login ({text}); check user and password in {_URLS}")
    secure = "rediss://" in who
    if _CLOSED.search(text):
        what = (
            "if it asks for a client certificate, give it with V5_REDIS_TLS_CERT and V5_REDIS_TLS_KEY"
            if secure
            else f"if it speaks TLS only, write rediss:// in {_URLS}"
        )
        return LedgerUnavailable(f"{who} closed the connection: {text}; {what}")
    if isinstance(error, TimeoutError) and secure:
        return LedgerUnavailable(f"{who} does not answer: {text}; check that this port speaks TLS")
    if isinstance(error, ResponseError) and not isinstance(error, ClusterDownError):
        return None
    return LedgerUnavailable(f"{who} cannot be reached or does not answer: {text}")


def _grant(text: str) -> str:
    command = _COMMAND.search(text)
    if command:
        return f"grant it with `ACL SETUSER <user> +{command.group(1)}`"
    if "channel" in text:
        return "grant its channels with `ACL SETUSER <user> '&v5:mq:*'`"
    if "key" in text:
        return "grant its keys with `ACL SETUSER <user> '~v5:*'`"
    return "see `ACL LOG` there; what a fleet needs is in docs/redis.md"
