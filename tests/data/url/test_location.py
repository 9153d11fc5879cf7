"""URLs as text."""

from __future__ import annotations

import pytest

from clipmlu.data.url.errors import UrlError
from clipmlu.data.url.location import is_url, parse_url, redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://host/a.jpg", True),
        ("HTTP://host", True),
        ("./https://host/a.jpg", False),
        ("https:/host/a.jpg", False),
        ("ftp://host/a.jpg", False),
        ("s3://bucket/a.jpg", False),
        ("photos/http://host", False),
        ("", False),
    ],
)
def test_http_and_https_are_urls(text: str, expected: bool) -> None:
    assert is_url(text) is expected


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "target", "header"),
    [
        ("https://host.org", "https", "host.org", 443, "/", "host.org"),
        ("http://HOST.org:80/a?b=1#part", "http", "host.org", 80, "/a?b=1", "host.org"),
        ("http://host:8080/a b/ü.jpg", "http", "host", 8080, "/a%20b/%C3%BC.jpg", "host:8080"),
        ("https://host/a%20b?sig=x%2By+z", "https", "host", 443, "/a%20b?sig=x%2By+z", "host"),
        ("https://[2001:DB8::1]:8443/", "https", "2001:db8::1", 8443, "/", "[2001:db8::1]:8443"),
        ("https://bücher.example/", "https", "xn--bcher-kva.example", 443, "/", "xn--bcher-kva.example"),
        ("http://host/\udcff.jpg", "http", "host", 80, "/%FF.jpg", "host"),
        ("  http://host/a.jpg \t", "http", "host", 80, "/a.jpg", "host"),
        ("http://host/a\x01b", "http", "host", 80, "/a%01b", "host"),
    ],
)
def test_urls_are_parsed_and_quoted(text: str, scheme: str, host: str, port: int, target: str, header: str) -> None:
    location = parse_url(text)
    assert (location.scheme, location.host, location.port, location.target) == (scheme, host, port, target)
    assert location.host_header == header


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://", "host is malformed"),
        ("http:///a.jpg", "host is malformed"),
        ("http://[::1/a.jpg", "malformed"),
        ("http://[fe80::1%25eth0]/a.jpg", "malformed"),
        ("http://host:99999/a.jpg", "malformed"),
        ("http://host:port/a.jpg", "malformed"),
        ("http://ho st/a.jpg", "host is malformed"),
        ("http://host%2eorg/a.jpg", "host is malformed"),
        ("http://" + "a" * 300, "host is malformed"),
        ("http://user:password@host/a.jpg", "user name or password"),
        ("http://public.org\\@127.0.0.1/a.jpg", "user name or password"),
        ("http://host/\ud800.jpg", "malformed"),
        ("file:///etc/passwd", "only http and https"),
    ],
)
def test_other_urls_are_errors(text: str, reason: str) -> None:
    with pytest.raises(UrlError, match=reason):
        parse_url(text)


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("/b.jpg", "https://host/b.jpg"),
        ("b.jpg?x=1", "https://host/folder/b.jpg?x=1"),
        ("//other/b.jpg", "https://other/b.jpg"),
        ("http://other:81/b.jpg", "http://other:81/b.jpg"),
        ("/\u00c3\u00bc.jpg", "https://host/ü.jpg"),  # UTF-8, as http.client gives it
    ],
)
def test_redirects_are_joined(target: str, url: str) -> None:
    assert parse_url("https://host/folder/a.jpg").follow(target).url == url


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("file:///etc/passwd", "it redirects to 'file:///etc/passwd': only http and https are allowed."),
        ("ftp://me:secret@host/", r"it redirects to 'ftp://\*\*\*@host/': only http and https are allowed."),
        ("http://[::1/", "it redirects to 'http://\\[::1/': the URL is malformed."),
    ],
)
def test_redirects_elsewhere_are_errors(target: str, message: str) -> None:
    with pytest.raises(UrlError, match=f"^{message}$"):
        parse_url("https://host/a.jpg").follow(target)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://host/a.jpg?id=7&w=640", "https://host/a.jpg?id=7&w=640"),
        ("https://me:secret@host/a.jpg", "https://***@host/a.jpg"),
        (
            "https://host/a?X-Amz-Signature=0a1b&X-Amz-Date=2026&sig=x%2B#top",
            "https://host/a?X-Amz-Signature=***&X-Amz-Date=2026&sig=***#top",
        ),
        ("https://host/a?v=1&API_KEY=k&access_token=t", "https://host/a?v=1&API_KEY=***&access_token=***"),
        ("https://host/key=1/@me/a.jpg", "https://host/key=1/@me/a.jpg"),
        ("photos/a?key=1.jpg", "photos/a?key=1.jpg"),
    ],
)
def test_secrets_are_not_shown(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_long_urls_are_cut() -> None:
    assert len(redact("https://host/" + "a" * 100_000)) < 400
