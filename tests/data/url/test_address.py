"""Which addresses are public, by the registries of IANA."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

from clipmlu.data.url.address import is_public, resolve
from clipmlu.data.url.errors import UrlError
from clipmlu.data.url.time_limit import TimeLimit


@pytest.mark.parametrize(
    "ip",
    [
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.167.255.255",
        "192.169.0.0",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2a00:1450:4001:81b::200e",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ],
)
def test_public_addresses(ip: str) -> None:
    assert is_public(ip)


@pytest.mark.parametrize(
    "ip",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "10.255.255.255",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",  # Teredo
        "2001:db8::1",
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "2002:808:808::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "febf::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_other_addresses(ip: str) -> None:
    assert not is_public(ip)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "::1", "::ffff:127.0.0.1"]
)
def test_every_spelling_of_loopback_is_refused(host: str) -> None:
    """Resolved by the system's own resolver, which knows more notations than ``ipaddress``."""
    with pytest.raises(UrlError, match="no public address"):
        resolve(host, 80, TimeLimit(10), allow_private=False)
    assert resolve(host, 80, TimeLimit(10), allow_private=True)


def _fake(monkeypatch: pytest.MonkeyPatch, *ips: str) -> None:
    def getaddrinfo(_host: bytes, port: int, **_options: Any) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (ip, port, 0, 0))
            if ":" in ip
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))
            for ip in ips
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_only_the_public_addresses_of_a_host_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(monkeypatch, "10.0.0.1", "8.8.8.8", "::1", "fe80::1%eth0", "2606:4700::1111")
    found = resolve("host", 80, TimeLimit(10), allow_private=False)
    assert [address.ip for address in found] == ["8.8.8.8", "2606:4700::1111"]


def test_error_names_the_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(monkeypatch, "10.0.0.1", "fe80::1%eth0")
    with pytest.raises(UrlError, match=r"\(10\.0\.0\.1, fe80::1\).*--allow-private-urls"):
        resolve("host", 80, TimeLimit(10), allow_private=False)


def test_unknown_host_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_arguments: Any, **_options: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(UrlError, match="'host' cannot be found: Name or service not known"):
        resolve("host", 80, TimeLimit(10), allow_private=False)


def test_resolver_that_hangs_is_left_after_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def getaddrinfo(*_arguments: Any, **_options: Any) -> list[Any]:
        released.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        resolve("host", 80, TimeLimit(0.3), allow_private=False)
    assert time.monotonic() - start < 30
    released.set()
