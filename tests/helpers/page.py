"""The gateway's page in headless Chromium, and what it should show."""

from __future__ import annotations

import base64
import json
import re
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's. No other test may run an event loop of its own within the block: Playwright has one."""
    path = shutil.which("chromium")
    assert path, "no chromium: run make tools"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser, address: str, failures: str = "the server responded with a status of [45]", **options: Any
) -> Iterator[Page]:
    """The page of a gateway. Afterwards nothing has failed in it, and it has loaded nothing from elsewhere.

    `failures`: pattern of failed requests that the test provokes; the browser writes them to its console.
    """
    context = browser.new_context(**options)
    context.set_default_timeout(60_000)
    page, requests, problems = context.new_page(), [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(f"http://{address}/")
    expect(page.locator(".scene")).to_have_count(3)
    yield page
    local = (f"http://{address}/", "data:", f"blob:http://{address}/")
    assert [url for url in requests if not url.startswith(local)] == []
    unexpected = [text for text in problems if not re.match(f"Failed to load resource: (?:{failures})", text)]
    assert not unexpected, unexpected
    context.close()


def ask_and_wait(page: Page) -> None:
    """Until both answers are complete."""
    page.click("#ask-button")
    for answer in ("#answer-few", "#answer-all"):
        expect(page.locator(answer)).to_have_attribute("data-phase", "done", timeout=60_000)
    expect(page.locator("#ask-button")).to_have_attribute("aria-disabled", "false")


def table_of_tokens(page: Page) -> list[dict[str, str]]:
    """Token, state, absorbing token and text of each cell, in the order of the tables."""
    page.click("#token-details summary")
    expect(page.locator("#token-tables table").first).to_be_visible()
    cells = "cells => cells.map((cell) => ({...cell.dataset, text: cell.textContent}))"
    return page.locator("#token-tables td[data-token]").evaluate_all(cells)


def expected_states(image: dict[str, Any]) -> list[str]:
    """What became of each token, from the explanation of an answer."""
    explanation = image["explanation"]
    states = ["merged" if into >= 0 else "dropped" for into in explanation["merged_into"]]
    for token, stage in zip(image["index"], explanation["stage"], strict=True):
        states[token] = ("focus", "scan")[stage]
    return states


def data_uri(file: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def api_answer(
    address: str, media: dict[str, Any], question: str, budget: float | str, **options: Any
) -> dict[str, Any]:
    """What the API says to the request of the page."""
    content = [media, {"type": "text", "text": question}]
    body = {"messages": [{"role": "user", "content": content}], "fsr": {"budget": budget, "explain": True}} | options
    request = urllib.request.Request(f"http://{address}/v1/chat/completions", json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def choose_scene(page: Page, number: int = 0) -> None:
    """Until its picture and a question are in the form."""
    page.locator(".scene").nth(number).click()
    expect(page.locator("#picture-name")).to_have_text(f"Scene {number + 1}")
    expect(page.locator("#question")).not_to_have_value("")


def ask_for_long(page: Page, tokens: int) -> None:
    """Asks for an answer of so many tokens: the model rambles if it is hot and may not end."""
    choose_scene(page)
    page.click("form summary")
    page.fill("#temperature", "10")
    page.fill("#max-tokens", str(tokens))
    page.fill("#more", '{"ignore_eos": true, "seed": 1}')
    page.click("#ask-button")


def errors_of(page: Page) -> dict[str, str]:
    """The sentences that are shown, by their field."""
    shown = page.locator(".error:not(:empty)").all()
    return {error.get_attribute("id").removeprefix("error-"): error.text_content() for error in shown}


def figures(page: Page) -> dict[str, list[str]]:
    """The texts of the table by the name of their row."""
    rows = page.locator("#figure-rows tr").all()
    return {row.locator("th").text_content(): row.locator("td").all_text_contents() for row in rows}
