"""The files of the page: headers, cache, and words in two languages."""

from __future__ import annotations

import re

import pytest

from clipmlu.serve.page import CONTENT_SECURITY_POLICY, INDEX, is_known, page_files


def _text(name: str) -> str:
    return page_files()[name].content.decode("utf-8")


def _words(language: str) -> set[str]:
    block = re.search(rf"^  {language}: {{\n(.*?)^  }},", _text("words.js"), re.DOTALL | re.MULTILINE)
    assert block is not None
    return set(re.findall(r"^    (\w+):", block.group(1), re.MULTILINE))


def test_types_of_the_files_are_those_that_browsers_take() -> None:
    types = {name.rpartition(".")[2]: file.media_type for name, file in page_files().items()}
    assert types == {
        "html": "text/html; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
    }


def test_etags_tell_files_apart() -> None:
    files = page_files()
    assert len({file.etag for file in files.values()}) == len(files)
    assert all(re.fullmatch(r'"[0-9a-f]{32}"', file.etag) for file in files.values())


@pytest.mark.parametrize(
    ("header", "known"), [('"a"', True), ('"x", W/"a"', True), ("*", True), ('"x"', False), ("", False)]
)
def test_if_none_match(header: str, known: bool) -> None:
    assert is_known('"a"', header) is known


def test_every_file_that_the_page_names_exists_and_comes_from_the_server() -> None:
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', _text(INDEX)))
    imported = {
        name for file in page_files() if file.endswith(".js") for name in re.findall(r'from "\./([^"]+)"', _text(file))
    }
    assert page_files().keys() == {INDEX} | named | imported
    for name in page_files():
        addresses = re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*", _text(name))
        assert [address for address in addresses if "www.w3.org" not in address] == []


def test_the_policy_lets_nothing_in_or_out() -> None:
    rules = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert not re.search(r"unsafe|https?:|\*", CONTENT_SECURITY_POLICY)


def test_both_languages_have_the_same_words_and_each_is_used() -> None:
    assert _words("en") == _words("zh")
    others = "\n".join(_text(name) for name in page_files() if name != "words.js")
    used = set(re.findall(r"[\"'](\w+)[\"']", others))
    assert _words("en") - used == set()
    assert set(re.findall(r'data-word(?:-label)?="(\w+)"', others)) <= _words("en")
