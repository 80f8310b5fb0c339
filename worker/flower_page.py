"""How Flower is served: address, path, login, rights; and what is refused about them."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from registry.errors import UsageError
from registry.settings import Settings
from worker.flower_login import Login, read_login


@dataclass(frozen=True)
class Page:
    """How the page is served."""

    address: str
    port: int
    #: Path under which a proxy serves it, without slashes around it; may be empty.
    prefix: str
    #: None: open to everybody who reaches the address.
    login: Login | None
    #: Whether the page may shut down workers and revoke tasks.
    control: bool

    @property
    def path(self) -> str:
        """The start of every path, without a closing slash."""
        return f"/{self.prefix}" if self.prefix else ""

    @property
    def url(self) -> str:
        """Where to point a browser."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}{self.path}/"


def make_page(settings: Settings, *, auth: bool = True, control: bool = False) -> Page:
    """The page of the settings. Raises UsageError if it would be open to others, and as `read_login`."""
    if auth:
        login = read_login(settings)
    elif control:
        raise UsageError("Flower may not be without a login and allowed to control workers; leave one out")
    elif not is_loopback(settings.flower_address):
        raise UsageError(
            f"Flower without a login at {settings.flower_address} would be open to the network; "
            "leave out --no-auth, or the address"
        )
    else:
        login = None
    return Page(
        settings.flower_address, settings.flower_port, settings.flower_url_prefix.strip("/"), login, control
    )


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
