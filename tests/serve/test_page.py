"""The page in headless Chromium: what people do on it, with mouse, keyboard and clipboard, and what they see when something fails."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import clipmlu
import support
from browser import VIEWS, Chromium, OpenPage, Scheme, Size
from clipmlu.serve.http.options import HttpOptions
from clipmlu.serve.loading import answering_while_loading
from clipmlu.serve.run import bind
from http_server import serving

pytestmark = pytest.mark.browser
_QUICK = (("desktop", "light"), ("phone", "dark"))
"""The views that ``make test`` tries: each size, scheme and language."""
LABELS = ("红色的圆", "blue square", "green cross")
EVIL = "<img src=x onerror=document.title='broken'>"
KEY = "a-key-of-the-tests-0123456789"
_GIVE = """([names, contents, kind]) => {
    const transfer = new DataTransfer();
    names.forEach((name, place) => {
        const bytes = Uint8Array.from(atob(contents[place]), (each) => each.charCodeAt(0));
        transfer.items.add(new File([bytes], name, {type: "image/png"}));
    });
    const init = {bubbles: true, cancelable: true};
    const event = kind === "paste"
        ? new ClipboardEvent("paste", {...init, clipboardData: transfer})
        : new DragEvent(kind, {...init, dataTransfer: transfer});
    (document.activeElement ?? document.body).dispatchEvent(event);
}"""
"""Gives files to the page as a drop or a paste does."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight pictures, and ``broken``, in which a file is no image."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(8):
        support.picture(number).save(folder / f"{number}.png")
    (folder / "broken").mkdir()
    (folder / "broken" / "corrupt.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def address(compiled_once: Path) -> Iterator[str]:
    """The address of a server with the tiny model under two names."""
    with serving(clipmlu.create_app({"tiny": compiled_once, "other": compiled_once})) as found:
        yield found


@pytest.fixture(scope="module")
def searching(
    compiled_once: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The address of a server with an index of the eight pictures, and the folder of the index."""
    index = tmp_path_factory.mktemp("index") / "job"
    clipmlu.embed_images(compiled_once, [photos / f"{number}.png" for number in range(8)], index, shard_format="npy")
    clipmlu.build_index(index)
    with serving(clipmlu.create_app({"tiny": compiled_once}, index=index)) as found:
        yield found, index


@pytest.fixture
def open_page(chromium: Chromium, address: str) -> Callable[..., OpenPage]:
    """``open_page(size="desktop", scheme="light", **context)``: the page, when it is ready."""

    def open_one(*given: Any, path: str = "", at: str = address, **context: Any) -> OpenPage:
        opened = chromium.open(f"{at}/{path}", *given, **context)
        opened.page.wait_for_selector("#forms:not([hidden])")
        return opened

    return open_one


def _give(opened: OpenPage, kind: str, *paths: Path) -> None:
    contents = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    opened.page.evaluate(_GIVE, [[path.name for path in paths], contents, kind])


def _choose(opened: OpenPage, *paths: Path) -> None:
    opened.page.set_input_files("#classify-images input", [str(path) for path in paths])


def _classify(opened: OpenPage) -> None:
    opened.page.click("#classify-form [type=submit]")
    opened.page.wait_for_selector("#classify-stop", state="hidden")


def _words(element: Any) -> str:
    """The text of an element, in which a space that breaks no line is like others."""
    return str(element.inner_text()).replace("\xa0", " ")


def _scores(opened: OpenPage) -> list[list[tuple[str, str]]]:
    """The labels and numbers of each card."""
    return [
        [
            (_words(row.query_selector(".label")), _words(row.query_selector(".number")))
            for row in card.query_selector_all(".scores li")
        ]
        for card in opened.page.query_selector_all(".card")
    ]


def _percent(text: str) -> float:
    return float(text.removesuffix(" %").removeprefix("<"))


def test_scores_equal_those_of_the_library(
    open_page: Callable[..., OpenPage], photos: Path, compiled_once: Path
) -> None:
    opened = open_page()
    _choose(opened, photos / "0.png", photos / "1.png")
    opened.page.fill("#labels", "，".join(LABELS))
    opened.page.select_option("#templates", "simple")
    assert opened.page.inner_text("#labels-count") == "3 labels"
    _classify(opened)
    with clipmlu.load(compiled_once) as model:
        expected = model.classifier(LABELS, "simple").predict([photos / "0.png", photos / "1.png"], top_k=3)
    for rows, prediction in zip(_scores(opened), expected, strict=True):
        assert tuple(label for label, _ in rows) == prediction.class_names
        assert [_percent(number) for _, number in rows] == pytest.approx(
            [100 * score for score in prediction.scores], rel=0.01, abs=0.001
        )
    assert re.fullmatch(r"2 images classified in [\d.]+\ss\.", opened.page.inner_text("#classify-status"))
    assert re.fullmatch(r"Server [\d.,]+\sms, round trip [\d.,]+\sms", opened.page.inner_text(".card .time"))
    assert (opened.problems, opened.outside_requests()) == ([], [])


def test_a_page_that_was_opened_while_the_server_loads_appears_by_itself(
    chromium: Chromium, compiled_once: Path
) -> None:
    with bind(HttpOptions(port=0)) as bound:
        with answering_while_loading(bound):
            opened = chromium.open(f"http://127.0.0.1:{bound.getsockname()[1]}/")
            assert "The server loads its bundles" in opened.page.inner_text("body")
        with serving(clipmlu.create_app({"tiny": compiled_once}), bound):
            opened.page.wait_for_selector("#forms:not([hidden])")


def test_images_are_dropped_pasted_and_removed(open_page: Callable[..., OpenPage], photos: Path) -> None:
    opened = open_page()
    page = opened.page
    names = lambda: [each.inner_text() for each in page.query_selector_all(".chosen .name")]  # noqa: E731
    _give(opened, "dragenter", photos / "0.png")
    assert page.evaluate("document.body.classList.contains('dropping')")
    _give(opened, "drop", photos / "0.png", photos / "1.png")
    assert not page.evaluate("document.body.classList.contains('dropping')")
    page.focus("#labels")
    _give(opened, "paste", photos / "2.png")
    assert names() == ["0.png", "1.png", "Pasted image 1"]
    assert page.inner_text("#classify-status") == "1 image added, 3 in all."
    page.click("[aria-label='Remove 1.png']")
    assert names() == ["0.png", "Pasted image 1"]
    assert page.evaluate("document.activeElement.ariaLabel") == "Remove Pasted image 1"
    page.click("text=Remove all")
    assert names() == []
    page.set_input_files("#classify-images input", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"words"})
    assert "Not an image: notes.txt" in page.inner_text("#classify-images [role=alert]")


def test_missing_fields_are_asked_for_where_they_are(open_page: Callable[..., OpenPage], photos: Path) -> None:
    opened = open_page()
    page = opened.page
    page.click("#classify-form [type=submit]")
    assert "Choose an image first" in page.inner_text("#classify-images [role=alert]")
    assert page.evaluate("document.activeElement.type") == "file"
    _choose(opened, photos / "0.png")
    page.click("#classify-form [type=submit]")
    assert "Type at least one label" in page.inner_text("#labels-problem")
    assert page.evaluate("[document.activeElement.id, document.activeElement.ariaInvalid]") == ["labels", "true"]
    page.fill("#labels", "cat")
    assert page.is_hidden("#labels-problem")
    page.select_option("#templates", "{}")
    page.fill("#template", "a photo")
    page.click("#classify-form [type=submit]")
    assert "Write {} where the label belongs" in page.inner_text("#template-problem")
    page.fill("#template", "a photo of {}")
    _classify(opened)
    assert _scores(opened) == [[("cat", "100.0 %")]]


def test_an_image_that_fails_has_the_servers_message_beside_the_others(
    open_page: Callable[..., OpenPage], photos: Path
) -> None:
    opened = open_page()
    _choose(opened, photos / "broken" / "corrupt.png", photos / "0.png")
    opened.page.fill("#labels", "cat, dog")
    _classify(opened)
    assert [len(rows) for rows in _scores(opened)] == [0, 2]
    assert "corrupt.png" in opened.page.inner_text(".card .problem")
    assert "1 image failed." in opened.page.inner_text("#classify-status")
    assert opened.page.inner_text("#classify-results > button") == "Try 1 image again"


def test_a_run_that_is_stopped_or_whose_server_is_gone_can_be_continued(
    open_page: Callable[..., OpenPage], photos: Path
) -> None:
    opened = open_page()
    _choose(opened, photos / "0.png", photos / "1.png")
    opened.page.fill("#labels", "cat, dog")
    opened.page.route("**/v1/classify", lambda route: None)
    opened.page.click("#classify-form [type=submit]")
    opened.page.click("#classify-stop")
    assert opened.page.inner_text("#classify-status") == "Stopped."
    assert opened.page.evaluate("document.activeElement.type") == "submit"
    opened.page.route("**/v1/classify", lambda route: route.abort("connectionrefused"))
    _classify(opened)
    assert opened.page.inner_text(".card .problem").startswith("The server does not answer.")
    opened.page.unroute("**/v1/classify")
    opened.page.click("text=Try 2 images again")
    opened.page.wait_for_selector("#classify-stop", state="hidden")
    assert [len(rows) for rows in _scores(opened)] == [2, 2]
    assert opened.page.query_selector(".problem:visible") is None


def test_a_busy_server_is_asked_again_after_the_time_that_it_says(
    open_page: Callable[..., OpenPage], photos: Path
) -> None:
    opened = open_page()
    refusals = [{"status": 429, "headers": {"Retry-After": "7"}, "json": {"error": {"message": "The queue is full."}}}]
    opened.page.route(
        "**/v1/classify", lambda route: route.fulfill(**refusals.pop()) if refusals else route.continue_()
    )
    opened.page.clock.install()
    _choose(opened, photos / "0.png")
    opened.page.fill("#labels", "cat, dog")
    opened.page.click("#classify-form [type=submit]")
    opened.page.wait_for_selector("text=The server is busy. Trying again in 7")
    opened.page.clock.fast_forward(6000)
    assert _scores(opened) == [[]]
    opened.page.clock.fast_forward(1000)
    opened.page.wait_for_selector("#classify-stop", state="hidden")
    assert [len(rows) for rows in _scores(opened)] == [2]


def test_markup_in_labels_names_and_messages_is_text(open_page: Callable[..., OpenPage], photos: Path) -> None:
    opened = open_page()
    content = (photos / "0.png").read_bytes()
    opened.page.set_input_files(
        "#classify-images input", {"name": f"{EVIL}.png", "mimeType": "image/png", "buffer": content}
    )
    opened.page.fill("#labels", f"{EVIL}\n<script>document.title = 'broken'</script>")
    _classify(opened)
    assert {label for label, _ in _scores(opened)[0]} == {EVIL, "<script>document.title = 'broken'</script>"}
    assert opened.page.inner_text(".card h3") == f"{EVIL}.png"
    body = {"status": 400, "json": {"error": {"code": "bad_image", "message": EVIL, "request_id": EVIL}}}
    opened.page.route("**/v1/classify", lambda route: route.fulfill(**body))
    _classify(opened)
    assert opened.page.inner_text(".card .problem") == f"{EVIL} request {EVIL}"
    assert opened.page.title() == "clipmlu"
    assert opened.page.query_selector("img[src=x]") is None


def test_the_address_keeps_the_choices_and_no_request_has_them(open_page: Callable[..., OpenPage]) -> None:
    opened = open_page()
    opened.page.fill("#labels", "红色的圆\nblue & green")
    opened.page.select_option("#bundle", "other")
    opened.page.select_option("#top", "3")
    opened.page.wait_for_url(re.compile("top=3"))
    again = open_page(path=opened.page.url.partition("/#")[2].join(("#", "")))
    assert again.page.input_value("#labels") == "红色的圆\nblue & green"
    assert (again.page.input_value("#bundle"), again.page.input_value("#top")) == ("other", "3")
    assert "other: " in again.page.inner_text("#facts")
    assert all("labels" not in address.partition("#")[0] for address in again.requests)
    again.page.evaluate("location.hash = 'labels=cat&lang=zh'")
    again.page.wait_for_selector("#labels-count:has-text('1 个类别')")
    assert again.page.input_value("#labels") == "cat"
    assert again.page.inner_text("#classify-form [type=submit]") == "分类"


def test_labels_are_lines_or_one_line_with_commas(open_page: Callable[..., OpenPage]) -> None:
    page = open_page().page
    split = lambda text: page.evaluate("text => import('/page/state.js').then((it) => it.splitLabels(text))", text)  # noqa: E731
    assert split("cat, dog，鸟、 cat;fox；") == ["cat", "dog", "鸟", "fox"]
    assert split(" a dog, sitting\r\n\ncat\ncat") == ["a dog, sitting", "cat"]
    assert split(" \n,") == []
    show = lambda score: page.evaluate("score => import('/page/scores.js').then((it) => it.percent(score))", score)  # noqa: E731
    numbers = {
        1: "100.0",
        0.5: "50.0",
        0.09996: "10.0",
        0.0999: "9.99",
        0.01: "1.00",
        0.0025: "0.25",
        0.00001: "0.0010",
        0: "<0.001",
    }
    assert {score: show(score) for score in numbers} == {score: f"{text}\xa0%" for score, text in numbers.items()}


@pytest.fixture
def guarded(compiled_once: Path) -> Iterator[str]:
    """The address of a server that demands a key and takes bodies of 5 kB."""
    with serving(clipmlu.create_app({"tiny": compiled_once}, api_key=KEY, max_body=5000)) as found:
        yield found


def test_the_key_is_asked_for_and_stays_in_the_tab(chromium: Chromium, guarded: str) -> None:
    opened = chromium.open(guarded)
    page = opened.page
    page.wait_for_selector("#key:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "key-text"
    assert page.inner_text("#key-reason") == ""
    page.keyboard.type("another")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=The API key is wrong")
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#forms:not([hidden])")
    assert page.is_hidden("#key")
    page.reload()
    page.wait_for_selector("#forms:not([hidden])")
    assert page.evaluate("[localStorage.length, document.cookie, location.href.includes('key')]") == [0, "", False]
    large = {"name": "large.png", "mimeType": "image/png", "buffer": bytes(50_000)}
    page.set_input_files("#classify-images input", large)
    page.fill("#labels", "cat")
    _classify(opened)
    assert "The server does not answer" not in page.inner_text(".card .problem")
    assert "5,000" in page.inner_text(".card .problem")
    page.click("text=Forget key")
    assert page.evaluate("[sessionStorage.length, document.activeElement.id]") == [0, "key-text"]


def test_everything_is_done_with_the_keyboard(open_page: Callable[..., OpenPage], photos: Path) -> None:
    opened = open_page()
    page = opened.page
    _choose(opened, photos / "0.png")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            """() => {
                const it = document.activeElement, shown = it.type === "file" ? it.nextElementSibling : it;
                return [it.id || it.ariaLabel || it.innerText, getComputedStyle(shown).outlineStyle !== "none"];
            }"""
        )
        assert focus[1], f"'{focus[0]}' has the focus, which cannot be seen"
        reached.append(focus[0])
        if focus[0] == "labels":
            page.keyboard.type("cat\ndog")
        if focus[0] == "Classify":
            page.keyboard.press("Enter")
            break
    order = [
        "Skip to the form",
        "English",
        "中文",
        "files-1",
        "Remove 0.png",
        "labels",
        "bundle",
        "templates",
        "top",
        "Classify",
    ]
    assert reached == order
    page.wait_for_selector(".card .scores li")
    page.focus(".skip")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "work"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "file"
    assert re.match(r"0\.png: (cat|dog), [\d.]+\s%", page.inner_text("[role=status]:visible"))


def test_the_page_speaks_the_language_of_the_browser_and_the_chosen_one(open_page: Callable[..., OpenPage]) -> None:
    page = open_page(locale="zh-CN").page
    assert page.inner_text("#classify-form [type=submit]") == "分类"
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.click("text=English")
    assert page.inner_text("#classify-form [type=submit]") == "Classify"
    page.reload()
    page.wait_for_selector("#forms:not([hidden])")
    assert page.inner_text("#classify-form [type=submit]") == "Classify"
    assert page.inner_text("[aria-pressed=true]") == "English"


def _search(opened: OpenPage) -> list[str]:
    """Search, and return the names of the hits."""
    opened.page.click("#search-form [type=submit]")
    opened.page.wait_for_selector("#search-stop", state="hidden")
    return [_words(each) for each in opened.page.query_selector_all(".hits .file")]


def test_an_index_is_searched_by_text_and_by_image(
    open_page: Callable[..., OpenPage], searching: tuple[str, Path], photos: Path
) -> None:
    opened = open_page(at=searching[0])
    page = opened.page
    page.focus("#tab-classify")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("[document.activeElement.id, document.activeElement.ariaSelected]") == ["tab-search", "true"]
    assert page.inner_text("#indexed") == "8 images in the index"
    assert _search(opened) == []
    assert page.inner_text("#query-problem") == "Type a text, or give an image."
    page.keyboard.type("a red dog")
    page.select_option("#hits", "4")
    (offline,) = clipmlu.search_index(searching[1], ["a red dog"], top_k=4).queries
    assert _search(opened) == [Path(hit.id).name for hit in offline.hits]
    assert re.fullmatch(r"4 hits in [\d.]+\ss\.", page.inner_text("#search-status"))
    shown = [
        float(_words(each).removeprefix("similarity ").replace("−", "-"))
        for each in page.query_selector_all(".similarity")
    ]
    assert shown == pytest.approx([hit.score for hit in offline.hits], abs=0.0006)
    sizes = page.evaluate(
        "[...document.querySelectorAll('.hits img')].map((it) => [it.naturalWidth, it.naturalHeight])"
    )
    assert sizes == [[support.SIDE, support.SIDE]] * 4
    page.fill("#query", "")
    _give(opened, "paste", photos / "5.png")
    assert _search(opened)[0] == "5.png"
    page.fill("#path", "*/[0-3].png")
    assert set(_search(opened)) == {f"{number}.png" for number in range(4)}
    assert (opened.problems, opened.outside_requests()) == ([], [])


def test_hits_without_a_picture_and_searches_that_fail_say_so(
    open_page: Callable[..., OpenPage], searching: tuple[str, Path], photos: Path
) -> None:
    opened = open_page(at=searching[0], path="#task=search&query=cat&hits=4")
    opened.page.route("**/v1/thumbnail/**", lambda route: route.fulfill(status=404, json={}))
    assert len(_search(opened)) == 4
    assert [_words(each) for each in opened.page.query_selector_all(".hits .view")] == ["no picture"] * 4
    opened.page.set_input_files("#search-images input", str(photos / "broken" / "corrupt.png"))
    assert _search(opened) == []
    assert "not a supported image format" in opened.page.inner_text("#search-results [role=alert]")


def test_what_the_emulated_sdk_computed_is_marked(
    open_page: Callable[..., OpenPage], chromium: Chromium, address: str, photos: Path
) -> None:
    """A route between page and server says in its answers what an emulated bundle says in them."""

    def emulated(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace('"emulated":false', '"emulated":true'))

    opened = chromium.open("about:blank", "phone")
    opened.page.route("**/v1/**", emulated)
    opened.page.goto(address)
    assert (
        opened.page.wait_for_selector("#emulated").inner_text().startswith("Emulated. The emulated vendor SDK computes")
    )
    _choose(opened, photos / "0.png")
    opened.page.fill("#labels", "cat\ndog")
    _classify(opened)
    assert opened.page.inner_text(".card .time .emulated") == "emulated"
    assert opened.accessibility_violations() == []
    opened.picture("page-phone-light-emulated")
    opened.page.click("text=中文")
    assert opened.page.inner_text("#emulated").startswith("模拟（emulated）结果：")
    assert opened.page.inner_text(".card .time .emulated") == "模拟（emulated）"
    assert opened.sideways_scroll() == 0
    opened.picture("page-phone-light-emulated-chinese")
    assert open_page().page.is_hidden("#emulated")


@pytest.mark.parametrize(
    ("size", "scheme"),
    [pytest.param(*view, marks=() if view in _QUICK else pytest.mark.slow, id="-".join(view)) for view in VIEWS],
)
def test_every_view_is_accessible_and_as_wide_as_the_window(
    open_page: Callable[..., OpenPage], searching: tuple[str, Path], photos: Path, size: Size, scheme: Scheme
) -> None:
    opened = open_page(size, scheme, at=searching[0], locale="zh-CN" if scheme == "dark" else "en-US")
    opened.picture(f"page-{size}-{scheme}-empty")
    _choose(opened, photos / "0.png", photos / "broken" / "corrupt.png")
    opened.page.fill(
        "#labels",
        "红色的圆\na label with so many words that they do not fit into one line of a narrow window\n" + "x" * 80,
    )
    opened.page.select_option("#templates", "{}")
    _classify(opened)
    assert opened.accessibility_violations() == []
    assert opened.sideways_scroll() == 0
    said = {
        "light": r"1 image classified in [\d.]+\ss\. 1 image failed\.",
        "dark": r"1 张图像分类完成，用时 [\d.]+\s秒。1 张失败。",
    }
    assert re.fullmatch(said[scheme], opened.page.inner_text("#classify-status"))
    opened.picture(f"page-{size}-{scheme}-scores")
    opened.page.click("#tab-search")
    opened.page.fill("#query", "红色的圆")
    assert len(_search(opened)) == 8
    assert opened.accessibility_violations() == []
    assert opened.sideways_scroll() == 0
    opened.picture(f"page-{size}-{scheme}-hits")
