"""What Flower shows, to whom, and what is refused."""

from __future__ import annotations

import base64
import os
import stat
from typing import Any

import pytest
from celery.events.state import Task

from registry.errors import UsageError
from registry.settings import Settings, load_settings
from worker.flower_login import Login, read_login
from worker.flower_page import make_page
from worker.flower_secrets import masked
from worker.flower_tasks import describe, format_task

REQUEST = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("name", "arguments", "queue", "said"),
    [
        ("v5.embed", "1a2b-c.7 embed.bge-m3", "", ("job 1a2b-c · batch 7", "bge-m3 · embed")),
        ("v5.aggregate", "1a2b-c.7 aggregate", "", ("job 1a2b-c · batch 7", "aggregate")),
        ("v5.embed_query", REQUEST, "query.bge-m3", ("request 01234567", "bge-m3 · embed query")),
        ("v5.embed_query", REQUEST, "", ("request 01234567", "embed query")),
        ("v5.rerank", REQUEST, "rerank.jina-v3", ("request 01234567", "jina-v3 · rerank")),
        ("v5.store.search", REQUEST, "store", ("request 01234567", "store · search")),
        ("v5.embed", "", "embed.bge-m3", None),
        ("somebody.elses", "1a2b-c.7 embed.bge-m3", "", None),
    ],
)
def test_a_task_is_described_by_job_batch_model_and_step(
    name: str, arguments: str, queue: str, said: tuple[str, str] | None
) -> None:
    assert describe(name, arguments, queue) == said


def test_a_task_is_shown_with_its_outcome_as_a_word() -> None:
    task = format_task(Task(name="v5.embed", kwargs="j.1 embed.m", result="'embedded'", uuid="u"))
    assert (task.args, task.kwargs, task.result) == ("job j · batch 1", "m · embed", "embedded")


def test_a_task_of_which_only_the_end_was_heard_is_shown_as_it_is() -> None:
    task = format_task(Task(uuid="u"))
    assert (task.args, task.kwargs, task.result) == (None, None, None)


def test_the_password_is_made_once_and_only_its_owner_reads_it(settings: Settings) -> None:
    mask = os.umask(0)
    try:
        login = read_login(settings)
    finally:
        os.umask(mask)
    path = settings.data_dir / "flower.password"
    assert login.where == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(login.password) >= 32
    assert read_login(settings) == login
    assert [file.name for file in settings.data_dir.iterdir()] == ["flower.password"]
    assert login.password not in repr(login)


def test_a_password_that_others_can_read_is_refused(settings: Settings) -> None:
    read_login(settings)
    (settings.data_dir / "flower.password").chmod(0o640)
    with pytest.raises(UsageError, match="others can read"):
        read_login(settings)


def test_a_given_password_is_used_and_not_shown(settings: Settings) -> None:
    given = load_settings(data_dir=settings.data_dir, flower_user="ann", flower_password="given secret")
    assert read_login(given).credentials == "ann:given secret"
    assert "given secret" not in f"{given!r}{given}"
    assert list(settings.data_dir.iterdir()) == []


@pytest.mark.parametrize(
    "wrong", [{"flower_user": "a:b"}, {"flower_user": "é"}, {"flower_password": "pässwort"}]
)
def test_a_login_that_basic_authentication_cannot_carry_is_refused(
    settings: Settings, wrong: dict[str, str]
) -> None:
    with pytest.raises(UsageError, match="printable ASCII"):
        read_login(load_settings(data_dir=settings.data_dir, **wrong))


def _basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "admitted"),
    [
        (_basic("v5:right"), True),
        (_basic("v5:wrong"), False),
        (_basic("other:right"), False),
        (_basic("v5:é"), False),
        (_basic(""), False),
        ("Basic %%%", False),
        ("Basic é", False),
        ("Bearer " + _basic("v5:right").split()[1], False),
        ("", False),
    ],
)
def test_only_the_right_header_is_admitted(header: str, admitted: bool) -> None:
    assert Login("v5", "right", "").admits(header) is admitted


@pytest.mark.parametrize(
    ("address", "options", "refused"),
    [
        ("127.0.0.1", {"auth": False}, ""),
        ("::1", {"auth": False}, ""),
        ("localhost", {"auth": False}, ""),
        ("192.0.2.1", {"auth": False}, "open to the network"),
        ("example.org", {"auth": False}, "open to the network"),
        ("127.0.0.1", {"auth": False, "control": True}, "without a login and allowed to control"),
        ("192.0.2.1", {"control": True}, ""),
    ],
)
def test_a_page_that_would_be_open_to_others_is_refused(
    settings: Settings, address: str, options: dict[str, Any], refused: str
) -> None:
    asked = load_settings(data_dir=settings.data_dir, flower_address=address)
    if refused:
        with pytest.raises(UsageError, match=refused):
            make_page(asked, **options)
    else:
        assert (make_page(asked, **options).login is not None) is options.get("auth", True)


@pytest.mark.parametrize(
    ("address", "prefix", "url"),
    [
        ("127.0.0.1", "", "http://127.0.0.1:5555/"),
        ("127.0.0.1", "/", "http://127.0.0.1:5555/"),
        ("::1", "/ops/flower/", "http://[::1]:5555/ops/flower/"),
    ],
)
def test_the_url_is_one_to_click_on(settings: Settings, address: str, prefix: str, url: str) -> None:
    asked = load_settings(data_dir=settings.data_dir, flower_address=address, flower_url_prefix=prefix)
    assert make_page(asked).url == url


@pytest.mark.parametrize("prefix", ["a b", "a.b", "//a", "a?b", "http://a"])
def test_a_prefix_that_is_no_path_is_refused(prefix: str) -> None:
    with pytest.raises(UsageError, match="V5_FLOWER_URL_PREFIX"):
        load_settings(flower_url_prefix=prefix)


def test_passwords_are_taken_out_of_what_workers_say() -> None:
    said = {
        "broker": {"hostname": "socket://ann:p%40ss@/run/a.sock?virtual_host=0", "port": None},
        "more": ["rediss://:secret@host:6380/0", "redis://host:6379/0", "worker@host", 7],
    }
    assert masked(said) == {
        "broker": {"hostname": "socket://ann:***@/run/a.sock?virtual_host=0", "port": None},
        "more": ["rediss://:***@host:6380/0", "redis://host:6379/0", "worker@host", 7],
    }
