"""The page at / in headless Chromium, against the running system."""

import itertools
import os
import re
import urllib.request

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from fsr.gateway.http.page import FOLDER
from fsr_core.overlay import FOCUS_INK, SCAN_INK
from helpers.page import (
    api_answer,
    ask_and_wait,
    ask_for_long,
    choose_scene,
    data_uri,
    errors_of,
    expected_states,
    figures,
    table_of_tokens,
)
from helpers.waiting import until

SCENE = (FOLDER / "scenes/1130582.webp").read_bytes()
QUESTION = "What colour is the star?"
PHONE = {"width": 360, "height": 740}
GROWTH = """() => {
  const answer = document.getElementById("text-few");
  window.seen = [];
  new MutationObserver(() => window.seen.push(answer.textContent)).observe(answer, {childList: true});
}"""


def test_both_answers_and_every_token_equal_those_of_the_api(opened, system):
    picture = {"type": "image_url", "image_url": {"url": data_uri(SCENE, "webp")}}
    few, whole = (api_answer(system["http"], picture, QUESTION, budget) for budget in (0.11, "all"))
    image = few["fsr"]["images"][0]
    states = expected_states(image)
    with opened() as page:
        choose_scene(page)
        ask_and_wait(page)
        assert page.text_content("#text-few") == few["choices"][0]["message"]["content"].lstrip() != ""
        assert page.text_content("#text-all") == whole["choices"][0]["message"]["content"].lstrip() != ""
        kept = len(image["index"])
        assert page.text_content("#kept-few") == f"{kept} of {image['source_tokens']}"
        assert page.text_content("#kept-all") == f"{image['source_tokens']} of {image['source_tokens']}"
        for state in ("focus", "scan", "merged", "dropped"):
            assert page.text_content(f"#count-{state}") == str(states.count(state)) != "0"
        cells = table_of_tokens(page)
        assert [int(cell["token"]) for cell in cells] == list(range(image["source_tokens"]))
        assert [cell["state"] for cell in cells] == states
        assert [int(cell["into"]) for cell in cells] == image["explanation"]["merged_into"]
        assert all(cell["text"].split()[0] == cell["state"] for cell in cells)
        columns = image["explanation"]["columns"]
        assert frames_on_canvas(page, columns) == [state if state in ("focus", "scan") else None for state in states]
        assert figures(page)["Budget"] == ["11 % (request)", "all (request)"]
        assert figures(page)["KV cache saved"][1] == "nothing" and "KiB" in figures(page)["KV cache saved"][0]


def frames_on_canvas(page, columns):
    """For each cell the stage whose colour its frame has on the canvas, or None."""
    colours = page.evaluate(
        """columns => {
          const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d");
          const size = canvas.width / columns, found = [];
          for (let row = 0; row < columns; row += 1) for (let column = 0; column < columns; column += 1)
            found.push([...pen.getImageData(column * size + 3, row * size + size / 4, 1, 1).data.slice(0, 3)]);
          return found;
        }""",
        columns,
    )
    return [{FOCUS_INK: "focus", SCAN_INK: "scan"}.get(tuple(colour)) for colour in colours]


def test_stream_grows_piece_by_piece(opened):
    with opened() as page:
        page.evaluate(GROWTH)
        ask_for_long(page, 40)
        expect(page.locator("#answer-all")).to_have_attribute("data-phase", "done")
        pieces = [text for text in page.evaluate("window.seen") if text]
        assert len(set(pieces)) > 5 and pieces[-1] == page.text_content("#text-few")
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(pieces))


def test_stop_ends_the_request_in_the_decoder(opened, system):
    def running():
        pages = [urllib.request.urlopen(f"http://{system[f'decoder-{i}-metrics']}/metrics").read() for i in (0, 1)]
        return sum(
            float(n) for n in re.findall(rb"^fsr_decoder_running_requests(?:{.*})? (\S+)", b"\n".join(pages), re.M)
        )

    with opened() as page:
        ask_for_long(page, 30_000)
        expect(page.locator("#text-few")).not_to_be_empty()
        assert running() == 1
        page.click("#stop-button")
        expect(page.locator("#answer-few")).to_have_attribute("data-phase", "stopped")
        expect(page.locator("#note-all")).to_have_text("Not asked.")
        expect(page.locator("#ask-button")).to_be_focused()
        until(lambda: running() == 0)


def test_errors_are_sentences_next_to_their_cause(opened, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with opened() as page:
        page.click("#ask-button")
        assert errors_of(page) == {"picture": "Choose a picture, or one of the drawn scenes."}
        expect(page.locator("#files")).to_be_focused()
        for name, sentence in (
            ("notes.txt", "notes.txt is no JPEG, PNG or WebP file. Choose a file of one of these types."),
            ("broken.png", "broken.png cannot be read as a picture. Choose another file."),
        ):
            page.set_input_files("#files", tmp_path / name)
            expect(page.locator("#error-picture")).to_have_text(sentence)
        choose_scene(page)
        assert errors_of(page) == {}
        page.fill("#question", " ")
        page.click("#ask-button")
        assert errors_of(page) == {"question": "Write a question about the picture."}
        expect(page.locator("#question")).to_be_focused()
        page.fill("#question", QUESTION)
        page.click("form summary")
        page.fill("#options", "{")
        page.click("#ask-button")
        assert errors_of(page) == {"options": 'This is no JSON object. Write one such as {"rho": 0.8}.'}
        page.fill("#options", '{"rhi": 0.8}')
        page.click("#ask-button")
        expect(page.locator("#error-options")).to_contain_text("rhi")  # the encoder says it
        assert errors_of(page).keys() == {"options"} and errors_of(page)["options"].startswith("Options: ")
        assert page.get_attribute("#options", "aria-invalid") == "true"
        expect(page.locator("#note-all")).to_have_text("Not asked.")
        page.fill("#options", '{"rho": 0.8}')
        page.fill("#more", '{"stream": false}')
        page.click("#ask-button")
        assert errors_of(page) == {"more": "The page sets stream itself. Take it out here."}
        page.fill("#more", '{"top_p": 7}')
        page.click("#ask-button")
        expect(page.locator("#error-more")).to_contain_text("7")
        page.fill("#more", "")
        page.fill("#temperature", "11")
        page.click("#ask-button")
        assert errors_of(page) == {"temperature": "Write a number from 0 to 10."}
        page.fill("#temperature", "")
        ask_and_wait(page)
        assert errors_of(page) == {}


def test_keyboard_alone_asks_and_restores(opened):
    def tab_to(selector, most=40):
        for _ in range(most):
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {selector}")

    with opened() as page:
        tab_to(".skip", most=2)
        tab_to("li:nth-child(2) > .scene")
        page.keyboard.press("Enter")
        expect(page.locator("#picture-name")).to_have_text("Scene 2")
        tab_to("li:nth-child(2) > .chip")
        page.keyboard.press("Enter")
        expect(page.locator("#question")).to_be_focused()
        expect(page.locator("#question")).to_have_value("Where is the red star?")
        tab_to("#choice-share")
        tab_to("#share")
        page.keyboard.press("Home")
        assert page.get_attribute("#share", "aria-valuetext") == "1 token"
        page.keyboard.press("ArrowRight")
        assert page.get_attribute("#share", "aria-valuetext") == "0.5 % of the tokens"
        page.keyboard.press("End")
        assert page.get_attribute("#share", "aria-valuetext") == "all tokens"
        tab_to("#ask-button")
        page.keyboard.press("Enter")
        expect(page.locator("#note-all")).to_have_text(
            "Your budget keeps all tokens already, so there is nothing to compare with."
        )
        expect(page.locator("#ask-button")).to_be_focused()
        first = page.text_content("#text-few")
        choose_scene(page)
        page.focus("#question")
        page.keyboard.press("Enter")
        expect(page.locator(".past")).to_have_count(2)
        assert page.text_content("#asked") == QUESTION
        tab_to("#token-details summary")
        page.keyboard.press("Enter")
        tab_to(".scroll")
        tab_to("li:nth-child(2) > .past")
        page.keyboard.press("Enter")
        expect(page.locator("#asked")).to_have_text("Where is the red star?")
        expect(page.locator("#question")).to_have_value("Where is the red star?")
        assert page.text_content("#text-few") == first
        assert page.get_attribute("#share", "aria-valuetext") == "all 144 tokens"
        expect(page.locator("li:nth-child(2) > .past")).to_be_focused()
        expect(page.locator("li:nth-child(2) > .past")).to_have_attribute("aria-current", "true")


def test_phone_has_no_sideways_scroll_and_pictures_for_the_docs(opened, tmp_path):
    """If FSR_PICTURES names a folder, the pictures for the documentation are written into it."""
    folder = os.environ.get("FSR_PICTURES", tmp_path)
    with opened(viewport={"width": 1280, "height": 900}) as page:
        choose_scene(page)
        ask_and_wait(page)
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=f"{folder}/page.png", full_page=True)
        page.set_viewport_size(PHONE)
        page.click("#token-details summary")
        page.click("form summary")
        width, overflowing = page.evaluate(
            """() => [document.documentElement.scrollWidth,
              [...document.querySelectorAll("body *")].filter((e) => !e.closest(".scroll, .unseen, #preview, .skip")
                && e.getBoundingClientRect().right > window.innerWidth).map((e) => e.outerHTML.slice(0, 80))]"""
        )
        assert (width, overflowing) == (PHONE["width"], [])
        page.click("form summary")
        page.click("#token-details summary")
        page.evaluate("document.getElementById('results').scrollIntoView()")
        page.screenshot(path=f"{folder}/page-phone.png")
    for name in ("page.png", "page-phone.png"):
        with Image.open(f"{folder}/{name}") as picture:
            picture.save(f"{folder}/{name}", optimize=True)
        assert 10_000 < os.path.getsize(f"{folder}/{name}") < 400_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(opened, scheme):
    def check(state):
        results = Axe().run(page).response
        assert results["passes"], state
        assert [(found["id"], found["nodes"][0]["html"]) for found in results["violations"]] == [], state

    with opened(color_scheme=scheme, reduced_motion="reduce") as page:
        check("start")
        choose_scene(page)
        ask_and_wait(page)
        page.click("#token-details summary")
        page.click("form summary")
        check("answered")
        page.fill("#options", '{"rhi": 1}')
        page.click("#ask-button")
        expect(page.locator("#error-options")).not_to_be_empty()
        check("error")


def test_events_are_read_whatever_the_pieces(opened):
    text = ': a comment\r\ndata: {"a": "ä€😀"}\r\n\r\ndata:one\ndata: two\n\nevent: x\n\rdata: 3\r\rdata: cut off'
    code = """async ([bytes, size]) => {
      const { events } = await import("./page/sse.js");
      const pieces = [];
      for (let i = 0; i < bytes.length; i += size) pieces.push(new Uint8Array(bytes.slice(i, i + size)));
      const body = new ReadableStream({ start(c) { pieces.forEach((p) => c.enqueue(p)); c.close(); } });
      const found = [];
      for await (const data of events(body)) found.push(data);
      return found;
    }"""
    with opened() as page:
        for size in (1, 2, 3, 5, 1000):
            assert page.evaluate(code, [list(text.encode()), size]) == ['{"a": "ä€😀"}', "one\ntwo", "3"]
