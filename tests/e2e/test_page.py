"""The page at / in headless Chromium, against a running system."""

import itertools
import os
import re
import urllib.error
import urllib.request

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from fsr.gateway.http.page import FOLDER
from fsr_core.overlay import FOCUS_INK, SCAN_INK
from helpers.page import api_answer, ask_and_wait, chromium, data_uri, expected_states, table_of_tokens
from helpers.page import opened as opened_page
from helpers.waiting import until

KEY = "a-key-of-the-page-test"
SCENE = (FOLDER / "scenes/1100051.webp").read_bytes()
QUESTION = "What colour is the star?"
PHONE = {"width": 360, "height": 740}
GROWTH = """() => {
  const answer = document.getElementById("text-few");
  window.seen = [];
  new MutationObserver(() => window.seen.push(answer.textContent)).observe(answer, {childList: true});
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser, system):
    """Opens the page, of the running system or of another gateway."""

    def opened(address=system["http"], **options):
        return opened_page(browser, address, **options)

    return opened


@pytest.fixture(scope="module")
def other_gateway(system, spawn, free_ports):
    """Starts one more gateway of the same replicas; returns it and the address of its HTTP port."""

    def start(*flags):
        port = str(free_ports())
        replicas = ["--encoders", system["encoder"], "--decoders", system["decoder-0"]]
        gateway = spawn("gateway", *replicas, "--http-port", port, "--discovery-seconds", "0.5", *flags)
        gateway.wait_until_serving()
        return gateway, f"127.0.0.1:{port}"

    return start


def choose_scene(page, number=0):
    page.locator(".scene").nth(number).click()
    expect(page.locator("#picture-name")).to_have_text(f"Scene {number + 1}")
    expect(page.locator("#question")).not_to_have_value("")


def ask_for_long(page, tokens):
    """Asks for an answer of about so many tokens: the model rambles if it is hot."""
    choose_scene(page)
    page.click("form summary")
    page.fill("#temperature", "10")
    page.fill("#max-tokens", str(tokens))
    page.click("#ask-button")


def errors_of(page):
    """The sentences that are shown, by their field."""
    shown = page.locator(".error:not(:empty)").all()
    return {error.get_attribute("id").removeprefix("error-"): error.text_content() for error in shown}


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


def figures(page):
    """The texts of the table by the name of their row."""
    rows = page.locator("#figure-rows tr").all()
    return {row.locator("th").text_content(): row.locator("td").all_text_contents() for row in rows}


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
        page.fill("#temperature", "11")
        page.click("#ask-button")
        assert errors_of(page) == {"temperature": "Write a number from 0 to 10."}
        page.fill("#temperature", "")
        ask_and_wait(page)
        assert errors_of(page) == {}


def test_gateway_that_dies_while_it_answers_is_a_sentence(opened, other_gateway):
    gateway, address = other_gateway()
    with opened(address, failures=r"net::ERR_(CONNECTION_REFUSED|INCOMPLETE_CHUNKED_ENCODING)") as page:
        ask_for_long(page, 30_000)
        expect(page.locator("#text-few")).not_to_be_empty()
        gateway.end()
        expect(page.locator("#error-request")).to_have_text(
            re.compile("^The gateway does not answer; check that it runs")
        )
        expect(page.locator("#note-few")).to_have_text("The answer broke off.")
        expect(page.locator("#note-all")).to_have_text("Not asked.")


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
        expect(page.locator("#question")).to_have_value("Where is the red diamond?")
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
        expect(page.locator("#asked")).to_have_text("Where is the red diamond?")
        expect(page.locator("#question")).to_have_value("Where is the red diamond?")
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
            picture.quantize(256).save(f"{folder}/{name}", optimize=True)
        assert 10_000 < os.path.getsize(f"{folder}/{name}") < 200_000


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


def test_key_is_asked_for_and_kept_in_memory_alone(opened, other_gateway):
    _, address = other_gateway("--api-keys", KEY, "--grafana-url", "https://grafana.example/d/fsr")
    with opened(address) as page:
        expect(page.locator("#links a").last).to_have_attribute("href", "https://grafana.example/d/fsr")
        choose_scene(page)
        page.click("#ask-button")
        assert errors_of(page) == {"key": "This gateway needs a key. Enter yours."}
        page.fill("#key", "another")
        page.keyboard.press("Tab")
        expect(page.locator("#error-key")).to_contain_text("the API key is unknown")
        page.fill("#key", KEY)
        page.keyboard.press("Tab")
        expect(page.locator("#method option")).not_to_have_count(1)
        assert errors_of(page) == {}
        with page.expect_request("**/v1/chat/completions") as sent:
            ask_and_wait(page)
        assert sent.value.headers["authorization"] == f"Bearer {KEY}"
        stored = page.evaluate("() => [localStorage.length, sessionStorage.length, document.cookie, location.href]")
        assert stored == [0, 0, "", f"http://{address}/"]


def test_policy_that_refuses_all_tokens_is_said_in_their_place(opened, other_gateway):
    _, address = other_gateway("--max-tokens", "32", "--default-budget", "20", "--default-method", "visionzip")
    with opened(address) as page:
        expect(page.locator("#policy-budget")).to_have_text(": 20 tokens")
        expect(page.locator("#method option").first).to_have_text("The gateway’s policy: visionzip")  # noqa: RUF001
        choose_scene(page)
        page.check("#choice-policy")
        page.click("#ask-button")
        expect(page.locator("#note-all")).to_have_text(re.compile(r"^The gateway does not give you all tokens\. .*32"))
        assert errors_of(page) == {} and page.text_content("#kept-few") == "20 of 144"
        assert figures(page)["Budget"][0] == "20 tokens (policy)"
        assert figures(page)["Method"][0] == "visionzip (policy)"
        page.check("#choice-share")
        page.focus("#share")
        page.keyboard.press("End")
        page.click("#ask-button")
        expect(page.locator("#error-budget")).to_contain_text("32")
        assert errors_of(page).keys() == {"budget"}


def test_gateway_without_a_model_says_so_and_without_the_page_has_none(opened, spawn, free_ports):
    port, closed = free_ports(), free_ports()
    absent = f"127.0.0.1:{free_ports()}"
    replicas = ("--encoders", absent, "--decoders", absent)
    spawn("gateway", *replicas, "--http-port", str(port))
    spawn("gateway", *replicas, "--http-port", str(closed), "--no-http-page")
    until(lambda: status(f"127.0.0.1:{port}/") == 200 and status(f"127.0.0.1:{closed}/health") == 200)
    with opened(f"127.0.0.1:{port}") as page:
        expect(page.locator("#error-model")).to_have_text(
            "No model is ready yet. The page looks again every few seconds."
        )
    assert [status(f"127.0.0.1:{closed}{path}") for path in ("/", "/page/app.js", "/page/config.json")] == [404] * 3


def status(address):
    """The status of a response; 0 without one."""
    try:
        with urllib.request.urlopen(f"http://{address}") as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


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
