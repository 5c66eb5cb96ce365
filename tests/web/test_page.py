# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, before a stand-in for the API whose answers each test sets."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from PIL import Image

from search_gateway.web import page_files
from tests.fakes.fake_search_site import FakeSearchSite, result
from tests.web.conftest import PHONE, Visit

OpenPage = Callable[..., Visit]
PAGE = Path(page_files.__file__).with_name("page")


@pytest.fixture
def searched(visit: OpenPage, photo: bytes) -> Visit:
    """A visit after a search, with twelve results hidden."""
    one = visit()
    one.drop(photo)
    one.wait_for_end()
    return one


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 40)).save(file, "PNG")
    return file.getvalue()


# ---- giving a photo


def test_dropped_photo_is_searched_as_it_is_and_seen_before_any_answer(
    visit: OpenPage, site: FakeSearchSite, photo: bytes
) -> None:
    site.may_answer.clear()
    one = visit()
    one.drop(photo)
    one.page.wait_for_selector("#photo[src^='blob:']")
    assert one.text("#summary") == "Reading the photo…"
    latest = re.search(r"DRAW_MS = (\d+);", (PAGE / "page.js").read_text(encoding="utf-8"))
    assert latest is not None
    assert int(latest[1]) <= 50, "of the 100 ms within which feedback appears, half is for the browser"
    one.wait_until("document.querySelector('#photo').naturalWidth === 240")
    site.may_answer.set()
    one.wait_for_end()
    (search,) = site.searches
    assert search.photo == photo
    assert search.content_type == "image/jpeg"
    assert search.options == {
        "min_visual_score": "-1", "min_semantic_score": "0", "max_results": "100", "include_dropped": "true",
    }  # fmt: skip
    assert one.text("#words") == "Red 77% searched for Handbag 85% searched for"
    assert one.page.input_value("#query") == "red handbag"
    assert one.titles() == ["Sketch Red Handbag", "Sketch Pink Handbag", "Sketch Blue Handbag"]
    assert one.text("#counts") == "16 found, 16 fetched; 1 folded into the same picture"


def test_pasted_photo_is_searched(visit: OpenPage, site: FakeSearchSite) -> None:
    one = visit()
    one.paste(png(30, 40))
    one.wait_for_end()
    assert site.searches[0].photo == png(30, 40)
    assert site.searches[0].content_type == "image/png"


def test_photo_in_the_clipboard_is_pasted_with_the_keyboard(visit: OpenPage, site: FakeSearchSite) -> None:
    one = visit()
    one.context.grant_permissions(["clipboard-read", "clipboard-write"])
    one.page.evaluate(
        """async () => {
          const canvas = new OffscreenCanvas(30, 40);
          canvas.getContext("2d").fillRect(0, 0, 30, 40);
          const picture = await canvas.convertToBlob({ type: "image/png" });
          await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
        }"""
    )
    one.page.keyboard.press("Control+v")
    one.wait_for_end()
    assert Image.open(io.BytesIO(site.searches[0].photo)).size == (30, 40)


def test_file_can_be_chosen_and_chosen_again(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    one = visit()
    file = {"name": "bag.jpg", "mimeType": "image/jpeg", "buffer": photo}
    one.page.set_input_files("#start-actions .primary input", file)
    one.wait_for_end()
    again = one.page.locator("#photo-actions input").first
    again.set_input_files(file)
    wait_for_searches(one, 2)
    assert [search.photo for search in site.searches] == [photo, photo]


def test_camera_is_offered_where_there_is_a_finger(visit: OpenPage) -> None:
    camera = "#start-actions [capture=environment]"
    assert visit(**PHONE).page.locator(camera).locator("..").is_visible()
    assert not visit().page.locator(camera).locator("..").is_visible()


def test_samples_are_searched_by_the_keyboard(visit: OpenPage, site: FakeSearchSite) -> None:
    one = visit()
    one.page.focus("#start-actions input")
    one.page.keyboard.press("Tab")
    one.page.keyboard.press("Enter")
    one.wait_for_end()
    assert site.searches[0].photo == (PAGE / "sample-handbag.webp").read_bytes()


def test_photo_above_the_limit_is_reduced_and_the_page_says_so(visit: OpenPage, site: FakeSearchSite) -> None:
    site.info = {"max_photo_pixels": 10_000}
    one = visit()
    one.drop(png(400, 100), "wide.png", "image/png")
    wait_for_searches(one, 2)  # so small a file is sent before its pixels are known
    (reduced,) = [search.photo for search in site.searches if search.content_type == "image/jpeg"]
    sent = Image.open(io.BytesIO(reduced))
    assert sent.format == "JPEG"
    assert sent.width * sent.height <= 10_000
    assert sent.width / sent.height == pytest.approx(4, abs=0.1)
    note = one.text("#photo-note")
    assert note.startswith(
        "The photo is above the limit of 0.01 megapixels, so your browser reduced it from 400 × 100 to "
    )


def test_format_that_the_gateway_does_not_read_is_sent_as_jpeg(visit: OpenPage, site: FakeSearchSite) -> None:
    file = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(file, "BMP")
    one = visit()
    one.drop(file.getvalue(), "photo.bmp", "image/bmp")
    one.wait_for_end()
    assert Image.open(io.BytesIO(site.searches[0].photo)).format == "JPEG"
    assert "as JPEG" in one.text("#photo-note")


def test_what_is_no_photo_is_refused_in_one_sentence(visit: OpenPage, site: FakeSearchSite) -> None:
    one = visit()
    one.drop(b"words", "notes.txt", "text/plain")
    assert one.text("#error-text") == "This is no photo: choose a JPEG, PNG, WebP or GIF file."
    assert site.searches == []


def test_photo_that_the_browser_cannot_show_is_left_to_the_gateway(visit: OpenPage, site: FakeSearchSite) -> None:
    site.refusal = (400, "the photo is damaged: send it as JPEG", {})
    one = visit()
    one.drop(b"\xff\xd8\xff\xe0 no picture")
    one.page.wait_for_selector("#error:not([hidden])")
    assert one.text("#error-text") == "The photo is damaged: send it as JPEG."
    assert not one.page.is_visible("#retry"), "the same photo would be refused again"
    assert one.page.is_visible("#no-preview")


def test_second_photo_ends_the_first_search(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    site.may_answer.clear()
    one = visit()
    one.drop(photo)
    one.wait_until("performance.getEntriesByName('captrieve-sent').length === 1")
    one.drop(png(30, 40), "photo.png", "image/png")
    one.wait_until("performance.getEntriesByName('captrieve-sent').length === 2")
    site.may_answer.set()
    one.wait_for_end()
    assert png(30, 40) in [search.photo for search in site.searches]
    assert len(one.titles()) == 3


def test_what_cannot_be_read_as_a_file_is_said_so(visit: OpenPage, photo: bytes) -> None:
    one = visit()
    one.page.evaluate("Blob.prototype.slice = () => ({ arrayBuffer: () => Promise.reject(new Error('a folder')) })")
    one.page.route("**/v1/search:stream*", lambda route: route.abort())
    one.drop(photo, "folder", "")
    one.page.wait_for_selector("#error:not([hidden])")
    assert one.text("#error-text") == "The browser cannot read this file: choose the photo again."


# ---- crop


def region_of(site: FakeSearchSite) -> list[float]:
    return [float(number) for number in site.searches[-1].options["region"].split(",")]


def wait_for_searches(one: Visit, number: int) -> None:
    one.wait_until(f"performance.getEntriesByName('captrieve-sent').length === {number}")
    one.wait_for_end()


def test_crop_with_the_mouse_searches_that_part_and_back(searched: Visit, site: FakeSearchSite) -> None:
    box = searched.page.locator("#frame").bounding_box()
    mouse = searched.page.mouse
    mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    mouse.down()
    mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.6 * box["height"])
    mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.9 * box["height"])
    mouse.up()
    wait_for_searches(searched, 2)
    assert region_of(site) == pytest.approx([0.25, 0.5, 0.5, 0.4], abs=0.01)
    # By its middle it moves, no further than the photo goes.
    mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.7 * box["height"])
    mouse.down()
    mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 3 * box["height"])
    mouse.up()
    wait_for_searches(searched, 3)
    assert region_of(site) == pytest.approx([0.25, 0.6, 0.5, 0.4], abs=0.01)
    assert sum(region_of(site)[1::2]) <= 1
    searched.page.click("#whole")
    wait_for_searches(searched, 4)
    assert "region" not in site.searches[-1].options


def test_crop_with_the_keyboard(searched: Visit, site: FakeSearchSite) -> None:
    page = searched.page
    page.focus("#crop")
    page.keyboard.press("Enter")
    assert page.is_visible("#crop-go")
    # However slowly the keys come, the pause after them has not passed.
    page.evaluate(
        """() => {
          const wait = setTimeout;
          window.setTimeout = (call, milliseconds) =>
            milliseconds === 600 ? ((window.afterPause = call), 0) : wait(call, milliseconds);
        }"""
    )
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "Shift+ArrowLeft", "Shift+ArrowUp"):
        page.keyboard.press(key)
    searched.wait_until("document.querySelector('#live').textContent.includes('width 68%')")
    assert len(site.searches) == 1
    page.evaluate("afterPause()")
    wait_for_searches(searched, 2)
    assert region_of(site) == pytest.approx([0.17, 0.19, 0.68, 0.68], abs=0.001)
    page.keyboard.press("Escape")
    wait_for_searches(searched, 3)
    assert "region" not in site.searches[-1].options


def test_crop_with_a_finger(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    one = visit(**PHONE)
    one.drop(photo)
    one.wait_for_end()
    one.page.tap("#crop")
    one.page.wait_for_selector(".crop")
    handle = one.page.locator(".handle.se").bounding_box()
    area = one.page.locator("#frame").bounding_box()
    x, y = handle["x"] + 8, handle["y"] + 8
    session = one.context.new_cdp_session(one.page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": across, "y": down} for across, down in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    touch("touchStart", (x, y))
    for share in (0.1, 0.2, 0.35):
        touch("touchMove", (x - share * area["width"], y - share * area["height"]))
    touch("touchEnd")
    wait_for_searches(one, 2)
    assert region_of(site) == pytest.approx([0.15, 0.15, 0.35, 0.35], abs=0.02)


def test_box_is_searched_as_it_stands(searched: Visit, site: FakeSearchSite) -> None:
    searched.page.click("#crop")
    searched.page.click("#crop-go")
    wait_for_searches(searched, 2)
    assert region_of(site) == [0.15, 0.15, 0.7, 0.7]
    assert not searched.page.is_visible("#crop-go")


def test_box_on_a_small_photo_has_the_pixels_that_the_gateway_wants(visit: OpenPage, site: FakeSearchSite) -> None:
    one = visit()
    one.drop(png(60, 80), "photo.png", "image/png")
    one.wait_for_end()
    one.page.click("#crop")
    for _ in range(40):
        one.page.keyboard.press("Shift+ArrowLeft")
        one.page.keyboard.press("Shift+ArrowUp")
    one.page.keyboard.press("Enter")
    wait_for_searches(one, 2)
    _, _, width, height = region_of(site)
    assert width * 60 >= 16
    assert height * 80 >= 16


def test_finger_on_the_photo_scrolls_the_page_before_crop_is_chosen(searched: Visit) -> None:
    assert searched.page.eval_on_selector("#frame", "frame => getComputedStyle(frame).touchAction") == "auto"
    searched.page.click("#crop")
    assert searched.page.eval_on_selector("#frame", "frame => getComputedStyle(frame).touchAction") == "none"


# ---- words


def test_caption_comes_before_the_results_and_results_as_they_pass(
    visit: OpenPage, site: FakeSearchSite, photo: bytes
) -> None:
    site.may_finish.clear()
    one = visit()
    one.drop(photo)
    one.wait_until("document.querySelector('#cards h3')")
    assert one.text("#words") == "Red 77% searched for Handbag 85% searched for"
    assert one.titles() == ["Sketch Red Handbag"]
    assert one.text("#summary") == "1 result so far, searching…"
    site.may_finish.set()
    one.wait_for_end()
    assert len(one.titles()) == 3


def test_words_of_the_query_are_marked(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    words = [{"text": text, "probability": 0.5, "alternatives": []} for text in ("red", "and", "a", "red", "bag.")]
    site.caption |= {"caption": "red and a red bag.", "words": words, "query": "red bag"}
    one = visit()
    one.drop(photo)
    one.wait_for_end()
    marked = one.page.eval_on_selector_all(".word", "all => all.map(one => one.classList.contains('asked'))")
    assert marked == [False, False, False, True, True]


def test_another_word_is_searched_without_captioning(searched: Visit, site: FakeSearchSite) -> None:
    page = searched.page
    page.click(".word >> nth=0")
    assert searched.text("#word-panel h3") == "Instead of “Red”"
    page.click("#word-panel .chip >> text=Maroon")
    wait_for_searches(searched, 2)
    assert site.searches[-1].options["query_override"] == "maroon handbag"
    assert searched.text("#words") == "Maroon edited searched for Handbag 85% searched for"
    assert page.input_value("#query") == "maroon handbag"
    # And back: the photo's own word is among the alternatives now.
    page.click(".word >> nth=0")
    page.click("#word-panel .chip >> text=Red")
    wait_for_searches(searched, 3)
    assert searched.text("#words") == "Red 77% searched for Handbag 85% searched for"


def test_alternatives_close_by_escape_and_focus_stays_on_the_word(searched: Visit) -> None:
    searched.page.focus(".word >> nth=1")
    searched.page.keyboard.press("Enter")
    assert searched.page.is_visible("#word-panel")
    searched.page.focus("#word-panel input")
    searched.page.keyboard.press("Escape")
    assert not searched.page.is_visible("#word-panel")
    assert searched.page.evaluate("document.activeElement.textContent").startswith("Handbag")


def test_word_can_be_typed_and_left_out(searched: Visit, site: FakeSearchSite) -> None:
    page = searched.page
    page.click(".word >> nth=1")
    page.fill("#word-panel input", "Purse")
    page.keyboard.press("Enter")
    wait_for_searches(searched, 2)
    assert site.searches[-1].options["query_override"] == "red purse"
    page.click(".word >> nth=0")
    page.click("text=Search without “red”")
    wait_for_searches(searched, 3)
    assert site.searches[-1].options["query_override"] == "purse"


def test_query_is_typed_and_the_photos_own_words_come_back(searched: Visit, site: FakeSearchSite) -> None:
    page = searched.page
    assert page.is_disabled("#query-go")
    page.fill("#query", "blue suitcase")
    page.keyboard.press("Enter")
    wait_for_searches(searched, 2)
    assert site.searches[-1].options["query_override"] == "blue suitcase"
    assert searched.text("#rule") == "your words"
    assert page.locator(".word.asked").count() == 0
    page.click("#own-words")
    wait_for_searches(searched, 3)
    assert "query_override" not in site.searches[-1].options
    assert page.input_value("#query") == "red handbag"
    assert page.locator(".word.asked").count() == 2


def test_other_readings_are_searched(searched: Visit, site: FakeSearchSite) -> None:
    assert searched.text("#readings") == "maroon handbag 5% pink handbag 4%"
    searched.page.click("#readings .chip >> nth=1")
    wait_for_searches(searched, 2)
    assert site.searches[-1].options["query_override"] == "pink handbag"
    assert searched.text("#readings") == "red handbag 90% maroon handbag 5%"


def test_unsure_answer_says_so(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    site.caption |= {"confidence": 0.2, "unsure_reason": "the photo may show no product"}
    one = visit()
    one.drop(photo)
    one.wait_for_end()
    assert one.text("#unsure") == "unsure: the photo may show no product (confidence 20%)"


# ---- results and thresholds


def set_slider(one: Visit, name: str, value: float) -> None:
    one.page.locator(f"#{name}").fill(f"{value:.2f}")


def test_sliders_filter_what_was_received(searched: Visit, site: FakeSearchSite) -> None:
    assert searched.text("#summary") == "3 results, best first. 12 hidden: 8 by words, 4 by looks"
    set_slider(searched, "agreement", 0.3)
    assert searched.text("#summary") == "11 results, best first. 4 hidden: 4 by looks"
    set_slider(searched, "looks", 0.9)
    assert searched.text("#summary") == "1 result. 14 hidden: 14 by looks"
    set_slider(searched, "looks", 0)
    assert searched.text("#looks-value") == "any"
    assert searched.text("#summary") == "15 results, best first"
    assert len(site.searches) == 1


def test_sliders_move_by_the_keyboard(searched: Visit) -> None:
    searched.page.focus("#looks")
    for _ in range(7):
        searched.page.keyboard.press("ArrowRight")
    assert searched.text("#looks-value") == "0.47"
    assert searched.titles() == ["Sketch Red Handbag", "Sketch Pink Handbag"]


def test_result_has_scores_source_and_on_demand_its_reason_and_duplicates(searched: Visit) -> None:
    first = "#cards .card >> nth=0"
    assert searched.text(f"{first} >> .score b") == "0.98"
    assert searched.text(f"{first} >> .parts") == "visual 0.97 · words 1.00 catalog"
    assert searched.page.get_attribute(f"{first} >> h3 a", "href") == "https://shop.example/red-handbag"
    assert searched.page.get_attribute(f"{first} >> h3 a", "rel") == "noopener noreferrer"
    assert not searched.page.is_visible(f"{first} >> .why p >> nth=0")
    assert searched.text(f"{first} >> .copies") == "+ 1 place"
    searched.page.click(f"{first} >> summary")
    assert searched.text(f"{first} >> .why p >> nth=0").startswith(
        "Looks like the photo (0.97) and its title has every"
    )
    assert searched.text(f"{first} >> .why li") == "The same bag (shop)"


def test_credit_line_is_shown_with_its_licence(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    credit = {"attribution": "Photo by <b>Someone</b>", "licence": "CC BY 4.0"}
    site.results = [
        result("Red Handbag", 0.9, 0.9) | credit | {"licence_url": "https://creativecommons.org/licenses/by/4.0/"},
        result("Pink Handbag", 0.8, 0.9) | {"attribution": "Brave Search", "licence_url": "javascript:alert(1)"},
        result("Blue Handbag", 0.7, 0.9),
    ]
    one = visit()
    one.drop(photo)
    one.wait_for_end()
    assert one.page.locator("#cards .credit").count() == 2
    assert one.text("#cards .card >> nth=0 >> .credit") == "Photo by <b>Someone</b> · CC BY 4.0"
    link = one.page.get_attribute("#cards .card >> nth=0 >> .credit a", "href")
    assert link == "https://creativecommons.org/licenses/by/4.0/"
    assert one.text("#cards .card >> nth=1 >> .credit") == "Brave Search"
    assert one.page.locator("#cards .card >> nth=1 >> .credit a").count() == 0


def test_hidden_results_are_listed_with_the_threshold_that_hides_them(searched: Visit) -> None:
    searched.page.click("#hidden-title")
    assert searched.page.locator("#hidden-list .row").count() == 12
    assert searched.text("#hidden-list .row >> nth=0 >> p >> nth=0") == (
        "Its title lacks 'handbag': 0.38, the minimum is 0.50"
    )
    assert "Looks too different: 0.17, the minimum is 0.40" in searched.text("#hidden-list")


def test_what_was_found_never_becomes_markup_or_a_script(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    title = "<img src=x onerror=alert(1)>"
    site.results = [result("Red Handbag", 0.9, 0.9) | {"title": title, "url": "javascript:alert(1)", "source": "<b>"}]
    one = visit()
    one.drop(photo)
    one.wait_for_end()
    assert one.titles() == [title]
    assert one.page.locator("#cards a").count() == 0


def test_counts_say_what_was_not_sent_and_what_has_an_excluded_word(
    visit: OpenPage, site: FakeSearchSite, photo: bytes
) -> None:
    counts = {"found": 120, "fetched": 118, "unfetchable": 2, "dropped_semantic": 3, "over_limit": 15, "kept": 100}
    site.summary = {"counts": counts}
    one = visit()
    one.drop(photo)
    one.wait_for_end()
    assert one.text("#counts") == (
        "120 found, 118 fetched; 2 without a picture that could be fetched; 3 with an excluded word; "
        "15 beyond the best 100"
    )


def test_empty_answer_says_why_and_shows_the_nearest_miss(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    site.results = site.results[3:]
    one = visit()
    one.drop(photo)
    one.wait_for_end()
    text = one.text("#empty")
    assert "catalog found 12 for “red handbag”, but 4 look too different and 8 do not agree with the words." in text
    assert "Nearest miss: its title lacks 'handbag': 0.38, the minimum is 0.50" in text
    assert one.text("#empty .card h3") == "Sketch Red Cap"
    one.page.click("text=Show all 12")
    assert len(one.titles()) == 12
    assert not one.page.is_visible("#empty")


def test_answer_without_candidates_gives_the_gateways_reason(
    visit: OpenPage, site: FakeSearchSite, photo: bytes
) -> None:
    site.results = []
    site.summary = {"empty_reason": "catalog has nothing for 'red handbag'"}
    one = visit()
    one.drop(photo)
    one.wait_for_end()
    assert one.text("#empty") == "Nothing found Catalog has nothing for 'red handbag'"


def test_degraded_parts_are_said_above_the_results(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    site.summary = {
        "degraded": [
            {"part": "duckduckgo", "reason": "DuckDuckGo cannot be reached"},
            {"part": "thumbnails", "reason": "2 of 9 thumbnails could not be used"},
        ]
    }
    one = visit()
    one.drop(photo)
    one.wait_for_end()
    assert one.text("#degraded") == (
        "duckduckgo: DuckDuckGo cannot be reached thumbnails: 2 of 9 thumbnails could not be used"
    )


def test_stage_times_are_shown(searched: Visit) -> None:
    assert searched.text("#total") == "118 ms"
    assert "encode 24 ms" in searched.text("#stages")
    assert searched.page.locator("#bar span").count() == 9


# ---- filters


def test_filters_are_searched_with_counted_and_kept_in_the_link(
    visit: OpenPage, searched: Visit, site: FakeSearchSite, photo: bytes
) -> None:
    page = searched.page
    assert page.is_disabled("#no-filters")
    page.click("#filters summary")
    given = {"max_price": "50", "category": "Handbags, Totes", "exclude": "striped, long sleeve,"}
    for number, (name, text) in enumerate(given.items(), start=2):
        page.fill(f"#{name}", text)
        page.keyboard.press("Enter")
        wait_for_searches(searched, number)
    page.select_option("#available", "true")
    wait_for_searches(searched, 5)
    expected = {**given, "exclude": "striped,long sleeve", "available": "true"}
    assert expected.items() <= site.searches[-1].options.items()
    assert "min_price" not in site.searches[-1].options
    assert searched.text("#filters-set") == "4 set"
    fragment = page.url.partition("#")[2]
    assert {name: [text] for name, text in expected.items()}.items() <= parse_qs(fragment).items()
    other = visit(fragment=f"#{fragment}")
    other.drop(photo)
    other.wait_for_end()
    assert expected.items() <= site.searches[-1].options.items()
    page.click("#no-filters")
    wait_for_searches(searched, 6)
    assert not expected.keys() & site.searches[-1].options.keys()
    assert not page.is_visible("#filters-set")


def test_words_of_the_query_are_without_those_that_are_excluded(
    visit: OpenPage, site: FakeSearchSite, photo: bytes
) -> None:
    site.caption |= {"query": 'red handbag -striped -"long sleeve"'}
    one = visit(fragment="#exclude=striped,long sleeve")
    one.drop(photo)
    one.wait_for_end()
    assert one.page.input_value("#query") == "red handbag"
    assert one.page.locator(".word.asked").count() == 2
    assert "words=red+handbag&" in one.page.url


def test_prices_that_were_given_in_the_wrong_order_are_exchanged(searched: Visit, site: FakeSearchSite) -> None:
    searched.page.click("#filters summary")
    searched.page.fill("#max_price", "50")
    searched.page.fill("#min_price", "90")
    searched.page.keyboard.press("Enter")
    searched.wait_until("document.querySelector('#max_price').value === '90'")
    searched.wait_for_end()
    assert {"min_price": "50", "max_price": "90"}.items() <= site.searches[-1].options.items()


def test_filters_that_a_field_does_not_accept_are_left_out(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    one = visit(fragment="#min_price=x&available=maybe&max_price=1e3")
    one.drop(photo)
    one.wait_for_end()
    assert site.searches[0].options.keys() & {"min_price", "max_price", "available"} == {"max_price"}


def test_empty_answer_offers_to_clear_the_filters(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    site.results = []
    site.summary = {"empty_reason": "catalog has nothing for 'red handbag'"}
    one = visit(fragment="#max_price=1")
    one.drop(photo)
    one.wait_for_end()
    one.page.click("#empty >> text=Clear filters")
    wait_for_searches(one, 2)
    assert "max_price" not in site.searches[-1].options


# ---- provider, link, saving


def test_provider_is_chosen(searched: Visit, site: FakeSearchSite) -> None:
    searched.page.select_option("#provider", "catalog")
    wait_for_searches(searched, 2)
    assert site.searches[-1].options["provider"] == "catalog"


def test_thresholds_are_the_gateways_unless_the_link_has_some(visit: OpenPage, site: FakeSearchSite) -> None:
    site.info = {"defaults": {"min_visual_score": 0.35, "min_semantic_score": 0.2, "max_results": 10}}
    for fragment, expected in (("", ("0.35", "0.20")), ("#looks=0.60&agreement=0.70", ("0.60", "0.70"))):
        page = visit(fragment=fragment).page
        page.wait_for_function("document.querySelector('#model').textContent")
        assert (page.text_content("#looks-value"), page.text_content("#agreement-value")) == expected


def test_link_keeps_words_provider_and_thresholds(
    visit: OpenPage, searched: Visit, site: FakeSearchSite, photo: bytes
) -> None:
    searched.page.select_option("#provider", "catalog")
    wait_for_searches(searched, 2)
    searched.page.fill("#query", "pink handbag")
    searched.page.keyboard.press("Enter")
    wait_for_searches(searched, 3)
    set_slider(searched, "agreement", 0.3)
    address, _, fragment = searched.page.evaluate("location.href").partition("#")
    assert parse_qs(fragment) == {
        "words": ["pink handbag"], "provider": ["catalog"], "looks": ["0.40"], "agreement": ["0.30"],
    }  # fmt: skip
    assert address == searched.address
    other = visit(fragment=f"#{fragment}")
    assert other.text("#link-words-text") == "This link searches for “pink handbag” with your photo."
    other.drop(photo)
    other.wait_for_end()
    assert site.searches[-1].options["query_override"] == "pink handbag"
    assert site.searches[-1].options["provider"] == "catalog"
    assert len(other.titles()) == 11
    # The next photo is another subject.
    other.drop(png(30, 40), "photo.png", "image/png")
    wait_for_searches(other, 2)
    assert "query_override" not in site.searches[-1].options


@pytest.mark.parametrize("fragment", ["#looks=7&agreement=x", "#words=%00%FF", "#=&&provider=", "#" + "a" * 5000])
def test_broken_link_does_no_harm(visit: OpenPage, photo: bytes, fragment: str) -> None:
    one = visit(fragment=fragment)
    one.drop(photo)
    one.wait_for_end()
    assert one.text("#looks-value") == "0.40"


def test_json_is_saved_as_the_command_prints_it(searched: Visit) -> None:
    with searched.page.expect_download() as download:
        searched.page.click("#save-json")
    assert download.value.suggested_filename == "captrieve-red-handbag.json"
    record = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert record["query"] == "red handbag"
    assert [one["title"] for one in record["results"]] == searched.titles()
    assert [one["verdict"] for one in record["dropped"]].count("dropped_semantic") == 8
    assert [one["verdict"] for one in record["dropped"]].count("dropped_visual") == 4
    counts = record["counts"]
    assert (counts["kept"], counts["dropped_semantic"], counts["dropped_visual"]) == (3, 8, 4)
    assert sum(counts.values()) == counts["found"] + counts["fetched"] + counts["found"]


def test_contact_sheet_is_saved(searched: Visit) -> None:
    with searched.page.expect_download() as download:
        searched.page.click("#save-sheet")
    assert download.value.suggested_filename == "captrieve-red-handbag.png"
    sheet = Image.open(download.value.path()).convert("RGB")
    assert sheet.width == 1600
    photo = sheet.crop((56, 160, 456, 640))
    red = sum(1 for pixel in photo.get_flattened_data() if pixel[0] > 150 and pixel[1] < 80)
    assert red > 10_000, "the photo is on it"


# ---- problems


def test_refused_key_is_asked_for_and_kept_in_the_tab_only(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    site.key = "right"
    one = visit()
    one.drop(photo)
    one.page.wait_for_selector("#key-dialog[open]")
    assert one.text("#key-title") == "This gateway asks for a key"
    one.page.fill("#key", "wrong")
    one.page.keyboard.press("Enter")
    one.wait_until("document.querySelector('#key-title').textContent === 'The gateway refuses this key'")
    one.page.fill("#key", "right")
    one.page.keyboard.press("Enter")
    one.wait_for_end()
    assert [search.key for search in site.searches] == [None, "Bearer wrong", "Bearer right"]
    assert "right" not in one.page.url
    assert one.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert not one.page.is_visible("#error")


def test_overloaded_gateway_is_one_sentence_and_can_be_tried_again(
    visit: OpenPage, site: FakeSearchSite, photo: bytes
) -> None:
    site.refusal = (429, "too many requests are in progress", {"Retry-After": "2"})
    one = visit()
    one.drop(photo)
    one.page.wait_for_selector("#error:not([hidden])")
    assert one.text("#error-text") == "Too many requests are in progress. Try again in 2 seconds."
    assert one.page.locator(".ghost").count() == 0
    site.refusal = None
    one.page.click("#retry")
    one.wait_for_end()
    assert not one.page.is_visible("#error")
    assert len(one.titles()) == 3


def test_late_error_leaves_what_has_arrived(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    site.late_error = "the models are starting again: try again in a moment"
    one = visit()
    one.drop(photo)
    one.page.wait_for_selector("#error:not([hidden])")
    assert one.text("#error-text") == "The models are starting again: try again in a moment."
    assert one.titles() == ["Sketch Red Handbag"]
    assert one.text("#words") == "Red 77% searched for Handbag 85% searched for"


def test_broken_connection_is_one_sentence(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    site.is_cut = True
    one = visit()
    one.drop(photo)
    one.page.wait_for_selector("#error:not([hidden])")
    assert one.text("#error-text") == ("The connection to the gateway broke before the answer was complete: try again.")
    one.errors = [error for error in one.errors if "net::ERR" not in error]


def test_gateway_that_is_gone_is_one_sentence(visit: OpenPage, photo: bytes) -> None:
    one = visit()
    one.page.route("**/v1/search:stream*", lambda route: route.abort("connectionrefused"))
    one.drop(photo)
    one.page.wait_for_selector("#error:not([hidden])")
    assert one.text("#error-text") == (
        "The gateway cannot be reached: check that it runs and that you are online, then try again."
    )


# ---- everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("settings", [{}, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_violation(
    visit: OpenPage, site: FakeSearchSite, photo: bytes, scheme: str, settings: dict[str, Any]
) -> None:
    site.summary = {"degraded": [{"part": "duckduckgo", "reason": "DuckDuckGo cannot be reached"}]}
    site.caption |= {"confidence": 0.2, "unsure_reason": "the photo may show no product"}
    one = visit(color_scheme=scheme, **settings)
    assert one.violations() == []
    one.drop(photo)
    one.wait_for_end()
    one.page.click(".word >> nth=0")
    one.page.click("#cards .card >> nth=0 >> summary")
    one.page.click("#hidden-title")
    one.page.click("#filters summary")
    one.page.fill("#max_price", "50")
    one.page.keyboard.press("Enter")
    wait_for_searches(one, 2)
    one.page.click(".word >> nth=0")
    one.page.click("#crop")
    assert one.violations() == []
    site.refusal = (401, "the request has no key that is known here: send one", {})
    one.page.click("#whole")
    one.page.wait_for_selector("#key-dialog[open]")
    assert one.violations() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_while_waiting_and_in_an_empty_answer(
    visit: OpenPage, site: FakeSearchSite, photo: bytes, scheme: str
) -> None:
    site.results = site.results[3:]
    site.may_answer.clear()
    one = visit(color_scheme=scheme)
    one.drop(photo)
    assert one.violations() == []
    site.may_answer.set()
    one.wait_for_end()
    assert one.violations() == []


@pytest.mark.parametrize("width", [320, 390, 768, 1024])
def test_no_screen_needs_scrolling_to_the_side(visit: OpenPage, photo: bytes, width: int) -> None:
    one = visit(**{**PHONE, "viewport": {"width": width, "height": 700}})

    def overhang() -> int:
        return int(one.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    assert overhang() == 0
    one.drop(photo)
    one.wait_for_end()
    one.page.click(".word >> nth=0")
    one.page.click("#filters summary")
    one.page.click("#hidden-title")
    assert overhang() == 0


def test_targets_for_fingers_are_large_enough(visit: OpenPage, photo: bytes) -> None:
    one = visit(**PHONE)
    one.drop(photo)
    one.wait_for_end()
    heights = one.page.eval_on_selector_all(
        "button, .button, select, input:not([data-photo]), summary",
        "all => all.filter(one => one.checkVisibility())"
        ".map(one => [one.textContent, one.getBoundingClientRect().height])",
    )
    assert [one for one in heights if one[1] < 24] == []


def test_screen_readers_are_told_what_happens(visit: OpenPage, site: FakeSearchSite, photo: bytes) -> None:
    site.may_finish.clear()
    one = visit()
    one.drop(photo)
    one.wait_until("document.querySelector('#live').textContent === "
                               "'Caption: Red Handbag. Searching for red handbag.'")  # fmt: skip
    site.may_finish.set()
    one.wait_until("document.querySelector('#live').textContent.startsWith('3 results, best first.')")


def test_page_weighs_less_than_100_kb_with_its_samples() -> None:
    files = {file.name: file.stat().st_size for file in PAGE.iterdir()}
    assert sum(files.values()) < 100_000
    assert max(size for name, size in files.items() if name.startswith("sample-")) < 20_000


def test_page_has_no_inline_script_or_style(visit: OpenPage) -> None:
    policy = visit().page.evaluate("fetch('/').then(answer => answer.headers.get('Content-Security-Policy'))")
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    text = (PAGE / "index.html").read_text(encoding="utf-8")
    assert " style=" not in text
    assert "<style" not in text
