"""Links between the pages lead somewhere, the site has every page, and what is generated is fresh."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from clipmlu.bundle.directory import CompiledBundle
from clipmlu.cli import main
from conftest import REPOSITORY
from pages import DOCS, all_pages, anchors, blocks, name_of, without_code

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def _links(page: Path) -> list[str]:
    return _LINK.findall(re.sub(r"`[^`]*`", "", without_code(page)))


@pytest.mark.parametrize("page", all_pages(), ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in _links(page):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), f"{name_of(page)}: {link}"
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        assert not page.is_relative_to(DOCS) or target.is_relative_to(DOCS), (
            f"{name_of(page)}: {link} is not part of the site"
        )
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name_of(page)}: {link}"


def test_the_site_has_every_page_and_the_overview_links_the_guides() -> None:
    listed = re.findall(
        r": ([\w/-]+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert len(listed) == len(set(listed))
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
    linked = set(_links(DOCS / "index.md"))
    guides = {
        page.relative_to(DOCS).as_posix()
        for folder in ("howto", "concepts", "reference")
        for page in (DOCS / folder).glob("*.md")
    }
    assert guides <= linked


def test_external_links_are_plain_addresses() -> None:
    """They are not fetched; with ``-s`` this prints them, for a person who looks at them."""
    links = sorted({link for page in all_pages() for link in _links(page) if link.startswith("https://")})
    print("\n".join(links))
    assert all(re.fullmatch(r"https://[\w.-]+(/[^\s]*)?", link) for link in links)


def test_a_manifest_is_valid_by_its_schema(compiled: CompiledBundle) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="an independent reader of JSON schemas")
    schema = json.loads((DOCS / "reference" / "manifest.schema.json").read_text(encoding="utf-8"))
    manifest = json.loads((compiled.path / "manifest.json").read_text(encoding="utf-8"))
    jsonschema.validate(manifest, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest | {"logit_scale": -1}, schema)


def test_a_report_is_valid_by_its_schema(compiled: CompiledBundle, capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="an independent reader of JSON schemas")
    schema = json.loads((DOCS / "reference" / "reports.schema.json").read_text(encoding="utf-8"))
    assert main(["eval", str(compiled.path), "--dataset", "demo", "--samples", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    accuracy = {"$ref": "#/$defs/AccuracyReport", "$defs": schema["$defs"]}
    jsonschema.validate(report, accuracy)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report | {"top1": "high"}, accuracy)


def test_every_type_of_the_schemas_is_described() -> None:
    for page in ("manifest", "reports"):
        text = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
        sections = re.findall(r"^## (\w+)\n\n(\S+)", text, flags=re.MULTILINE)
        assert len(sections) > 15
        assert [name for name, first in sections if first.startswith("|")] == []


def test_environment_variables_are_those_of_the_source() -> None:
    text = (DOCS / "reference" / "environment.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([A-Z][A-Z0-9_]+)`", text, flags=re.MULTILINE))
    assert _read_by_the_source() - named == set()
    unknown = {name for name in named if name.startswith("CLIPMLU_")} - _read_by_the_source()
    assert unknown == set()


def _read_by_the_source() -> set[str]:
    """Names of variables in the source and the tests: of our own, and what ``environ.get`` and constants name."""
    found: set[str] = set()
    for path in [*(REPOSITORY / "src" / "clipmlu").rglob("*.py"), *(REPOSITORY / "tests").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        ours = re.findall(r"\bCLIPMLU_[A-Z0-9_]*[A-Z0-9]\b", text)
        if "tests" in path.relative_to(REPOSITORY).parts:
            found |= {name for name in ours if name.startswith("CLIPMLU_TEST_")}
            continue
        found |= set(ours)
        found |= set(re.findall(r"environ\.get\(\"([A-Z0-9_]+)\"", text))
        found |= set(re.findall(r"^_?[A-Z_]*VARIABLE = \"([A-Z0-9_]+)\"", text, flags=re.MULTILINE))
    return found - {"PATH", "CLIPMLU_COMPLETE", "CLIPMLU_MLU", "CLIPMLU_EMULATOR", "CLIPMLU_WORKER", "CLIPMLU_TEST"}


def test_pages_name_no_place_of_one_machine() -> None:
    for page in all_pages():
        text = page.read_text(encoding="utf-8") + "".join(block.text for block in blocks(page))
        assert re.findall(r"/(?:root|work|tmp/w)/\S*", text) == [], name_of(page)
