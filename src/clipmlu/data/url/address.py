"""The IP addresses of a host, and which of them are on the public internet."""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import socket
import threading
from typing import Any, NamedTuple

from clipmlu.data.url.errors import PrivateAddressError, UrlError
from clipmlu.data.url.time_limit import STEP_S, TimeLimit

# Source: the IANA IPv4 special-purpose address registry (RFC 6890), entries that are not globally reachable, and the
# multicast and reserved blocks. Python's ``ipaddress`` is not asked: its tables changed between minor versions.
_IPV4_NOT_PUBLIC = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared with a provider; Alibaba's metadata server is in it
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's platform server for its virtual machines
            "169.254.0.0/16",  # link-local; the metadata servers of most clouds are in it
            "172.16.0.0/12",
            "192.0.0.0/24",  # Oracle's metadata server is in it
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",  # multicast, reserved and broadcast
        ),
    )
)
# Only 2000::/3 is global unicast (IANA IPv6 address space registry); these blocks of it are not public or hold an IPv4
# address of their own (Teredo is in 2001::/23, 6to4 is 2002::/16).
_IPV6_PUBLIC = ipaddress.IPv6Network("2000::/3")
_IPV6_NOT_PUBLIC = tuple(map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address that is reached

_MOST_ADDRESSES = 4


class SocketAddress(NamedTuple):
    """An address to connect to.

    Attributes:
        family: of the socket.
        value: argument of ``socket.connect``.
    """

    family: int
    value: tuple[Any, ...]

    @property
    def ip(self) -> str:
        """The IP address as text, without zone."""
        return str(self.value[0]).partition("%")[0]


def is_public(ip: str) -> bool:
    """Return whether an IP address is on the public internet: not private, loopback, link-local, multicast or reserved.

    IPv6 addresses that stand for an IPv4 address (mapped, NAT64) are judged by that address.

    Args:
        ip: an IPv4 or IPv6 address in the usual notation.
    """
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address in _NAT64:
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _IPV4_NOT_PUBLIC)
    return address in _IPV6_PUBLIC and not any(address in network for network in _IPV6_NOT_PUBLIC)


def resolve(host: str, port: int, limit: TimeLimit, *, allow_private: bool) -> list[SocketAddress]:
    """Return the addresses of a host to which a connection is allowed, at most four, in the system's order.

    The caller connects to these addresses and does not resolve the name again: a name server that gives another address
    the second time (DNS rebinding) is not asked twice.

    Args:
        host: a name, or an address in any notation of the system, such as ``2130706433`` for 127.0.0.1.
        port: of the server.
        limit: time limit.
        allow_private: whether addresses that are not public are allowed.

    Raises:
        UrlError: the name is not known.
        PrivateAddressError: it has no allowed address.
        TimeoutError: the name server did not answer in time.
    """
    try:
        found = _resolve_within(host, port, limit)
    except socket.gaierror as error:
        raise UrlError(f"its host '{host}' cannot be found: {error.strerror}.") from error
    allowed = [address for address in found if allow_private or is_public(address.ip)]
    if not allowed:
        addresses = ", ".join(dict.fromkeys(address.ip for address in found[:_MOST_ADDRESSES])) or "none"
        raise PrivateAddressError(
            f"its host has no public address ({addresses}). If the source of the URL is trusted, allow others with "
            "--allow-private-urls (allow_private in Python)."
        )
    return allowed[:_MOST_ADDRESSES]


def _resolve_within(host: str, port: int, limit: TimeLimit) -> list[SocketAddress]:
    """Resolve a host in another thread, since ``getaddrinfo`` takes no time limit; it ends by the resolver's own limits."""
    answers: queue.SimpleQueue[list[SocketAddress] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
            answers.put([SocketAddress(family, value) for family, _, _, _, value in found])
        except OSError as error:
            answers.put(error)

    threading.Thread(target=ask, name="clipmlu-resolve", daemon=True).start()
    while True:
        with contextlib.suppress(queue.Empty):
            answer = answers.get(timeout=min(limit.left(), STEP_S))
            if isinstance(answer, OSError):
                raise answer
            return answer
