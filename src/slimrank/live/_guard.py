# SPDX-License-Identifier: Apache-2.0
"""Who may ask the server: whoever knows the token, from this machine, by the name of this machine."""

import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What a request must have.

    Attributes:
        port: of the server.
        token: that stands in every address.
        names: by which it may be asked, beside "localhost"; as all names of hosts, in any case.
        is_local: whether it listens to this machine only; else others may ask as well.
    """

    port: int
    token: str
    names: frozenset[str] = frozenset()
    is_local: bool = True

    def refusal(self, headers: Mapping[str, str], token: str | None, *, changes: bool = False) -> str | None:
        """Why a request is refused.

        Args:
            headers: of the request, names in lower case.
            token: in its address; None for none.
            changes: it would change something: then it must come from the server's own page.

        Returns:
            The reason, for people; None where it may go on.
        """
        host = headers.get("host", "")
        if not self._is_own(host):
            # A foreign page can make its own name mean this machine; then it asks by that name.
            return f"this server is asked as {host!r}; open the address that it printed"
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin.lower().removeprefix("http://")):
            return f"a page of {origin} asks; only the server's own pages may"
        if changes and origin is None:
            return "a change needs an Origin; use the page that the server shows"
        if token is None or not secrets.compare_digest(token.encode(), self.token.encode()):
            return "the token is missing or wrong; open the whole address that the server printed"
        return None

    def _is_own(self, host: str) -> bool:
        """Whether a name with its port is this server's; a number is: no page can make that mean another."""
        name, _, port = host.lower().rpartition(":")
        if port != str(self.port):
            return False
        if name in ("localhost", *(known.lower() for known in self.names)):
            return True
        number = name.removeprefix("[").removesuffix("]")
        return is_loopback(number) or (not self.is_local and _is_number(number))


def is_loopback(address: str) -> bool:
    """Whether an address is a number by which a machine means itself."""
    return _is_number(address) and ipaddress.ip_address(address).is_loopback


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
