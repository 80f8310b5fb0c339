"""Addresses of Redis servers: what people write, what redis-py and kombu make of it, what is shown."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Connection
from kombu.transport.redis import Channel

from registry.celery_app import make_app
from registry.errors import UsageError
from registry.redis_address import read_address
from registry.settings import load_settings


def kombu_parameters(connection: Connection) -> dict[str, Any]:
    """What kombu would connect with; a channel made in the usual way connects at once."""
    channel = Channel.__new__(Channel)
    channel.connection = connection.transport
    channel._closed = True
    found: dict[str, Any] = channel._connparams()
    return found


#: URL, host or path, port, database, user, password.
READ = [
    ("redis://h", "h", 6379, 0, None, None),
    ("redis://h:7000/3", "h", 7000, 3, None, None),
    ("redis://:p%40s%2Fw%3Ax%25@h/1", "h", 6379, 1, None, "p@s/w:x%"),
    ("redis://user:a@b@h", "h", 6379, 0, "user", "a@b"),
    ("redis://us%3Aer:p;w,x@h", "h", 6379, 0, "us:er", "p;w,x"),
    ("redis://user:@h", "h", 6379, 0, "user", ""),
    ("redis://h?password=a%26b&username=u&db=4", "h", 6379, 4, "u", "a&b"),
    ("rediss://u:p@[::1]:7/2", "::1", 7, 2, "u", "p"),
    ("unix:///run/a%20b%3F.sock?db=2", "/run/a b?.sock", 0, 2, None, None),
    ("redis+socket://u:p%2Fw@/run/x.sock?virtual_host=5", "/run/x.sock", 0, 5, "u", "p/w"),
]


@pytest.mark.parametrize(("url", "where", "port", "db", "user", "password"), READ)
def test_redis_py_and_kombu_go_to_the_same_place(
    url: str, where: str, port: int, db: int, user: str | None, password: str | None
) -> None:
    address = read_address(url, "V5_REDIS_URL")
    settings = load_settings(redis_url=url)
    ours = redis.Redis.from_url(settings.ledger_url).connection_pool.connection_kwargs
    with make_app(settings).connection() as connection:
        kombus = kombu_parameters(connection)
    for found in (ours, kombus):
        assert found.get("path", found.get("host")) == where
        assert found.get("port", 0) == port
        assert int(found["db"]) == db
        assert found.get("username") == user
        # None and an empty password log in alike.
        assert (found.get("password") or None) == (password or None)
    assert read_address(address.url, "V5_REDIS_URL") == address
    assert read_address(address.celery_url, "V5_REDIS_URL") == address


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"redis://:{SECRET}/{SECRET}@h", "%2F"),
        (f"redis://user:1/{SECRET}@h:1", "%2F"),
        (f"redis://:{SECRET}#{SECRET}@h", "%23"),
        (f"redis://:1?{SECRET}@h", "%3F"),
        (f"redis://:[{SECRET}@h", "%40"),
        (f"redis://:{SECRET}@h:{SECRET}", "cannot be read"),
        (f"redis://{SECRET}@h", "user without a password"),
        (f"redis://:{SECRET}@h/x", "number"),
        (f"redis://:{SECRET}@h?ssl_ca_certs=/x", "rediss://"),
        (f"rediss://:{SECRET}@h?ssl_ca_certs=/nowhere.pem", "/nowhere.pem"),
        (f"rediss://:{SECRET}@h?ssl_cert_reqs=perhaps", "ssl_cert_reqs"),
        (f"redis://:{SECRET}@h?pasword={SECRET}", "not understood"),
        (f"unix://:{SECRET}@h/x.sock", "absolute path"),
        (f"amqp://u:{SECRET}@h", "redis://HOST"),
        (f"sentinel://:{SECRET}@h:26379", "Sentinel"),
        (f"redis+sentinel://:{SECRET}@h:26379", "Sentinel"),
        (f"rediss+cluster://:{SECRET}@h", "cluster"),
        (f"{SECRET}@h", "redis://HOST"),
    ],
)
@pytest.mark.parametrize("setting", ["redis_url", "broker_url", "blob_urls"])
def test_what_cannot_be_is_said_without_the_secret(url: str, says: str, setting: str) -> None:
    with pytest.raises(UsageError) as raised:
        load_settings(**{setting: url})
    assert says in str(raised.value)
    assert f"V5_{setting.upper()}" in str(raised.value)
    assert SECRET not in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    "url", [f"redis://u:{SECRET}@h:1/2", f"redis://h?password={SECRET}", f"unix://:{SECRET}@/s"]
)
def test_nothing_that_is_shown_has_the_password(url: str) -> None:
    settings = load_settings(redis_url=url, blob_urls=url, broker_url=url)
    app = make_app(settings)
    with app.connection() as connection:
        shown = [repr(settings), str(settings), settings.ledger_address.shown, repr(settings.ledger_address),
                 connection.as_uri(), repr(connection), app.conf.humanize(), app.bugreport()]  # fmt: skip
    assert not [text for text in shown if SECRET in text]


def test_one_setting_feeds_both_libraries(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {name: tmp_path / f"{name} a+b.pem" for name in ("ca", "cert", "key")}
    for path in files.values():
        path.touch()
    fields = {f"redis_tls_{name}": path for name, path in files.items()}
    for extra, verified in (({}, 2), ({"redis_tls_verify": False}, 0)):
        settings = load_settings(redis_url="rediss://h", **fields, **extra)
        pool = redis.Redis.from_url(settings.ledger_url).connection_pool
        ours = pool.make_connection()
        with caplog.at_level(logging.WARNING), make_app(settings).connection() as connection:
            params = kombu_parameters(connection)
        assert not caplog.records, "kombu warns of insecure defaults"
        kind = params.pop("connection_class")
        kombus = kind(**{k: v for k, v in params.items() if k != "max_connections"})
        for found in (ours, kombus):
            assert isinstance(found, redis.SSLConnection)
            assert found.cert_reqs == verified
            assert found.check_hostname == bool(verified)
            assert (found.ca_certs, found.certfile, found.keyfile) == tuple(str(p) for p in files.values())


def test_tls_is_checked_unless_it_is_switched_off() -> None:
    """kombu's own default is to trust anybody."""
    with Connection(load_settings(redis_url="rediss://h").celery_url) as connection:
        assert kombu_parameters(connection)["ssl_cert_reqs"] == 2


def test_the_url_wins_over_the_settings() -> None:
    address = load_settings(redis_url="rediss://h?ssl_cert_reqs=none").ledger_address
    assert address.tls is not None
    assert not address.tls.verify


def test_tls_settings_without_tls_are_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    with pytest.raises(UsageError, match="rediss://"):
        load_settings(redis_url="redis://h", redis_tls_ca=tmp_path / "ca.pem")


@pytest.mark.parametrize(
    "text",
    [
        "redis://:a,b@h/1,rediss://g",
        " redis://:a,b@h/1 , rediss://g ",
        json.dumps(["redis://:a,b@h/1", "rediss://g"]),
    ],
)
def test_blob_servers_are_a_list_with_commas_or_json(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V5_BLOB_URLS", text)
    first, second = load_settings().blob_addresses
    assert (first.host, first.password, first.db) == ("h", "a,b", 1)
    assert (second.host, second.tls is not None) == ("g", True)


def test_a_broken_list_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V5_BLOB_URLS", f'["redis://:{SECRET}@h"')
    with pytest.raises(UsageError, match="V5_BLOB_URLS") as raised:
        load_settings()
    assert SECRET not in str(raised.value)
