"""The page of gateways that ask for a key, have a policy, no model or no page, or die."""

import re
import urllib.error
import urllib.request

import pytest
from playwright.sync_api import expect

from helpers.page import ask_and_wait, ask_for_long, choose_scene, errors_of, figures
from helpers.waiting import until

KEY = "a-key-of-the-page-test"


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


BROKEN = (
    "net::ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE|INCOMPLETE_CHUNKED_ENCODING)|"
    "the server responded with a status"
)


def test_answer_when_the_gateway_dies_and_comes_back_goes_on(opened, other_gateway):
    gateway, address = other_gateway()
    with opened(address, failures=BROKEN) as page:
        ask_for_long(page, 400)
        for answer in ("few", "all"):
            expect(page.locator(f"#answer-{answer}")).to_have_attribute("data-phase", "done", timeout=120_000)
        undisturbed = [page.text_content(f"#text-{answer}") for answer in ("few", "all")]
        page.click("#ask-button")
        for answer in ("few", "all"):
            expect(page.locator(f"#text-{answer}")).not_to_be_empty(timeout=120_000)
            gateway.end()
            expect(page.locator(f"#note-{answer}")).to_have_text(re.compile("^The connection broke"))
            gateway.start()
            expect(page.locator(f"#answer-{answer}")).to_have_attribute("data-phase", "done", timeout=120_000)
            expect(page.locator(f"#note-{answer}")).to_be_empty()
        assert [page.text_content(f"#text-{answer}") for answer in ("few", "all")] == undisturbed
        assert errors_of(page) == {}
        assert page.text_content("#kept-few") == "16 of 144"  # the explanation came before


def test_gateway_that_dies_while_it_answers_and_stays_away_is_a_sentence(opened, other_gateway):
    gateway, address = other_gateway()
    with opened(address, failures=BROKEN) as page:
        ask_for_long(page, 30_000)
        expect(page.locator("#text-few")).not_to_be_empty()
        gateway.end()
        expect(page.locator("#error-request")).to_have_text(
            re.compile("^The gateway does not answer; check that it runs"), timeout=60_000
        )
        expect(page.locator("#note-few")).to_have_text("The answer broke off.")
        expect(page.locator("#note-all")).to_have_text("Not asked.")


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
        expect(page.locator("#method option").first).to_have_text(re.compile("policy: visionzip$"))
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
