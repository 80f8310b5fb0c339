"""Where a Redis server is and how to log in: read once from a URL, spelled for redis-py and for kombu."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from registry.errors import UsageError

_PORT = 6379
#: How people spell the schemes we serve; `redis+socket` is kombu's spelling of a Unix socket.
_SCHEMES = {"redis": "redis", "rediss": "rediss", "unix": "unix", "redis+socket": "unix"}
#: Query words besides the TLS ones: redis-py says `db` where kombu says `virtual_host`.
_WORDS = {"username", "password", "db", "virtual_host"}
_TLS_WORDS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
_VERIFY = {"required": True, "cert_required": True, "none": False, "cert_none": False}
_BOOLEAN = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Tls:
    """How a server proves itself and how we do. Paths are of PEM files."""

    #: Authorities trusted besides the system's.
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    #: Without it anybody on the way can be the server.
    verify: bool = True
    check_hostname: bool = True

    def query(self) -> dict[str, str]:
        """As URL parameters that redis-py and kombu read alike; says whether to verify, which kombu would
        not do by itself."""
        files = {"ssl_ca_certs": self.ca, "ssl_certfile": self.certificate, "ssl_keyfile": self.key}
        return {
            "ssl_cert_reqs": "required" if self.verify else "none",
            "ssl_check_hostname": "true" if self.verify and self.check_hostname else "false",
            **{word: str(path) for word, path in files.items() if path is not None},
        }


@dataclass(frozen=True)
class RedisAddress:
    """A server over TCP, over TLS, or on a Unix socket."""

    host: str = "localhost"
    port: int = _PORT
    #: Of the Unix socket; empty: TCP.
    path: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None

    @property
    def url(self) -> str:
        """For redis-py; contains the password."""
        if self.path:
            return f"unix://{self._login()}{quote(self.path)}?db={self.db}"
        return self._tcp(self._login()) + (f"?{urlencode(self.tls.query())}" if self.tls else "")

    @property
    def celery_url(self) -> str:
        """For kombu, which spells Unix sockets and their database its own way; contains the password."""
        if self.path:
            return f"redis+socket://{self._login()}{quote(self.path)}?virtual_host={self.db}"
        return self.url

    @property
    def shown(self) -> str:
        """For people: no password."""
        login = ""
        if self.password is not None:
            login = f"{quote(self.username or '', safe='')}:***@"
        if self.path:
            return f"unix://{login}{self.path}" + (f"?db={self.db}" if self.db else "")
        return self._tcp(login)

    def _tcp(self, login: str) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{login}{host}:{self.port}/{self.db}"

    def _login(self) -> str:
        if self.password is None:
            return ""
        return f"{quote(self.username or '', safe='')}:{quote(self.password, safe='')}@"


def read_address(text: str, setting: str, tls: Tls | None = None) -> RedisAddress:
    """Read a URL; what it says about TLS goes over `tls`.

    Raises UsageError that names the setting and never quotes the URL, which may hold a password.
    """
    parts, port = _split(text, setting)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if query.keys() - _WORDS - _TLS_WORDS:
        # Not which: it may be the rest of a password with an unencoded `?`.
        raise UsageError(
            f"{setting} has a parameter that is not understood after `?`; known are "
            f"{', '.join(sorted(_WORDS | _TLS_WORDS))} (a ? of a password is written %3F)"
        )
    username, password = _login(parts, query, setting)
    scheme = _SCHEMES[parts.scheme]
    address = RedisAddress(username=username, password=password)
    if scheme == "unix":
        if parts.hostname or not parts.path:
            raise UsageError(f"{setting} wants the socket's absolute path: unix:///run/redis.sock")
        database = query.get("virtual_host", query.get("db", ""))
        address = replace(address, path=unquote(parts.path), db=_database(database, setting))
    else:
        database = query.get("db", query.get("virtual_host", unquote(parts.path).strip("/")))
        address = replace(
            address,
            host=unquote(parts.hostname or "localhost"),
            port=port or _PORT,
            db=_database(database, setting),
            tls=_tls(query, tls or Tls(), setting) if scheme == "rediss" else None,
        )
    if scheme != "rediss" and query.keys() & _TLS_WORDS:
        raise UsageError(f"{setting} has TLS parameters but no TLS; write rediss:// instead of {scheme}://")
    return address


def _split(text: str, setting: str) -> tuple[SplitResult, int | None]:
    scheme = text.partition("://")[0].lower()
    if "sentinel" in scheme or "cluster" in scheme:
        raise UsageError(
            f"{setting}: Sentinel and cluster addresses are not supported; give the primary's own address "
            "(redis://HOST:PORT), or a name that follows the primary"
        )
    if scheme not in _SCHEMES or "://" not in text:
        raise UsageError(
            f"{setting} must be the URL of a Redis or Valkey server: redis://HOST:PORT/DB, rediss:// for "
            "TLS, or unix:///PATH"
        )
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        pass
    else:
        # An unencoded / of a password ends the host early, and the @ comes after it.
        cut = parts.netloc and "@" not in parts.netloc and "@" in parts.path
        if not cut and not parts.fragment:
            return parts, port
    raise UsageError(
        f"{setting} cannot be read as a URL; in user and password write / as %2F, ? as %3F, # as %23, "
        "@ as %40, : as %3A and % as %25"
    )


def _login(parts: SplitResult, query: dict[str, str], setting: str) -> tuple[str | None, str | None]:
    given = parts.password
    username = unquote(parts.username or "") or query.get("username") or None
    password = unquote(given) if given is not None else query.get("password")
    if username is not None and password is None:
        raise UsageError(
            f"{setting} names a user without a password; write redis://USER:PASSWORD@HOST, or "
            "redis://:PASSWORD@HOST where there is only a password"
        )
    if username is None and password == "":
        password = None
    return username, password


def _database(text: str, setting: str) -> int:
    if not text:
        return 0
    if not text.isdecimal():
        raise UsageError(
            f"{setting}: the database after the host is a number, as in redis://HOST:PORT/3 "
            "(a / of a password is written %2F)"
        )
    return int(text)


def _tls(query: dict[str, str], tls: Tls, setting: str) -> Tls:
    files = {"ca": "ssl_ca_certs", "certificate": "ssl_certfile", "key": "ssl_keyfile"}
    paths = {name: Path(query[word]) for name, word in files.items() if word in query}
    verify = _VERIFY.get(query.get("ssl_cert_reqs", "required" if tls.verify else "none").lower())
    hostname = _BOOLEAN.get(query.get("ssl_check_hostname", str(tls.check_hostname)).lower())
    if verify is None or hostname is None:
        raise UsageError(f"{setting}: ssl_cert_reqs is required or none, ssl_check_hostname true or false")
    found = replace(tls, verify=verify, check_hostname=hostname, **paths)
    for path in (found.ca, found.certificate, found.key):
        if path is not None and not path.is_file():
            raise UsageError(f"{setting}: there is no TLS file {path} (see V5_REDIS_TLS_CA, _CERT, _KEY)")
    if found.key is not None and found.certificate is None:
        raise UsageError(f"{setting}: a TLS key needs its certificate (V5_REDIS_TLS_CERT)")
    return found
