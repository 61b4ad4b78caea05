"""Policies at a real gateway before the running system: defaults, bounds, and the file that changes under it."""

import json
import urllib.error
import urllib.request

import pytest

from fsr.client import AuthenticationError, Client, InvalidRequestError
from fsr.common.requests.budget_text import budget_text
from helpers.chat import messages
from helpers.waiting import until

QUESTION = "Is there a red star?"
OPTIONS = ("--default-budget", "32", "--default-method", "cdpruner", "--min-tokens", "4", "--max-tokens", "72")
KEYS = """
keys:
  - key: plain
  - key: shared
    name: half
    policy: {default_budget: 1.0, default_method: random, default_options: {seed: 1}}
  - key: boss
    policy: {max_tokens: 0}
  - key: narrow
    policies: {fsr-tiny: {default_budget: auto, max_tokens: 8}}
"""


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("policies") / "keys.yaml"
    path.write_text(KEYS)
    return path


@pytest.fixture(scope="module")
def http_port(free_ports):
    return free_ports()


@pytest.fixture(scope="module")
def gateway(system, spawn, keys_file, http_port):
    """A second gateway in front of the system's replicas."""
    replicas = ("--encoders", system["encoder"], "--decoders", f"{system['decoder-0']},{system['decoder-1']}")
    keys = ("--api-keys-file", str(keys_file), "--discovery-seconds", "0.3")
    service = spawn("gateway", *replicas, *keys, "--http-port", str(http_port), *OPTIONS)
    service.wait_until_serving()
    return service


@pytest.fixture(scope="module")
def ask(gateway, pictures):
    """Asks with a key; the answer's usage."""
    (picture,) = pictures(31, 1)
    clients = {}

    def ask(key, **options):
        if key not in clients:
            clients[key] = Client(gateway.address, api_key=key)
        return clients[key].ask(picture, QUESTION, max_tokens=2, timeout=120, **options).usage

    yield ask
    for client in clients.values():
        client.close()


def compressed(usage):
    return (usage.visual_tokens_kept, usage.budget, usage.budget_chosen_by, usage.method, usage.method_chosen_by)


def test_request_when_it_leaves_all_open_gets_the_policy_s(ask, gateway):
    by_policy = {"method": "cdpruner", "budget_chosen_by": "policy", "method_chosen_by": "policy"}
    before = gateway.metric("fsr_compressed_requests_total", **by_policy)
    usage = ask("plain")
    assert compressed(usage) == (32, "32", "policy", "cdpruner", "policy")
    assert gateway.metric("fsr_compressed_requests_total", **by_policy) == before + 1

    def line():
        lines = [json.loads(text) for text in gateway.log.read_text().splitlines() if usage.request_id in text]
        return next((line for line in lines if line["event"] == "answered"), None)

    until(lambda: line() is not None)
    logged = {name: line()[name] for name in ("budget", "budget_chosen_by", "method", "method_chosen_by")}
    assert logged == {"budget": "32", "method": "cdpruner"} | {
        f"{of}_chosen_by": "policy" for of in ("budget", "method")
    }


@pytest.mark.parametrize(("budget", "kept"), [(4, 4), (72, 72), (0.25, 36), (0.5, 72)])
def test_request_within_the_bounds_gets_what_it_asks_for(ask, budget, kept):
    assert compressed(ask("plain", budget=budget, method="fsr")) == (kept, str(budget), "request", "fsr", "request")


def test_automatic_budget_stays_within_the_bounds(ask):
    usage = ask("narrow", method="fsr")
    assert 4 <= usage.visual_tokens_kept <= 8 and (usage.budget, usage.budget_chosen_by) == ("auto:4..8", "policy")
    assert ask("plain", budget="auto").budget == "auto:4..72"


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (73, "budget: 73 is more than 72, the most that the policy allows; ask for a number in 4..72"),
        (3, "budget: 3 is fewer than 4, the fewest that the policy allows; ask for a number in 4..72"),
        (0.9, "budget: 0.9 of 144 tokens are 130, more than 72, the most that the policy allows; ask for"),
        (1.0, "1 of 144 tokens are 144, more than 72, the most that the policy allows; ask for at most 0.5"),
        (0.01, "0.01 of 144 tokens are 1, fewer than 4, the fewest that the policy allows; ask for at least 0.03"),
    ],
)
def test_request_out_of_bounds_is_refused_with_the_numbers(ask, budget, says):
    with pytest.raises(InvalidRequestError) as caught:
        ask("plain", budget=budget)
    assert says in str(caught.value) and caught.value.route.decoders == ()


def test_share_of_the_policy_itself_is_narrowed(ask, gateway):
    usage = ask("shared")
    assert compressed(usage) == (72, "1.0", "policy", "random", "policy")
    line = next(text for text in gateway.log.read_text().splitlines() if usage.request_id in text)
    assert json.loads(line)["key_name"] == "half"


@pytest.mark.parametrize("budget", [1.0, 144, 5000])
def test_request_opts_out_of_compression_where_the_policy_allows_it(ask, budget):
    assert ask("boss", budget=budget).visual_tokens_kept == 144


def test_http_request_follows_the_same_policy(gateway, http_port, pictures):
    (picture,) = pictures(31, 1)

    def post(**options):
        body = {"messages": messages(QUESTION, picture), "max_tokens": 2, "fsr": options}
        headers = {"content-type": "application/json", "authorization": "Bearer plain"}
        url = f"http://127.0.0.1:{http_port}/v1/chat/completions"
        return urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=120)

    usage = json.load(post())["usage"]["fsr"]
    assert (usage["visual_tokens_kept"], usage["budget"], usage["budget_chosen_by"]) == (32, 32, "policy")
    assert (usage["method"], usage["method_chosen_by"]) == ("cdpruner", "policy")
    for budget, says in (
        (73, "73 is more than 72, the most"),
        (0.9, "0.9 of 144 tokens are 130, more than 72, the most"),
    ):
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(budget=budget)
        error = json.load(caught.value)["error"]
        assert caught.value.code == 400 and error["param"] == "fsr.budget"
        assert error["message"].startswith(f"fsr.budget: {says} that the policy allows; ask for ")


def test_compression_and_list_of_models_show_the_policy(gateway, pictures):
    with Client(gateway.address, api_key="narrow") as client:
        compression = client.compress(pictures(31, 1)[0], QUESTION, method="random")
        (model,) = client.models()
    assert (compression.budget, compression.budget_chosen_by) == ("auto:4..8", "policy")
    assert (compression.method, compression.method_chosen_by) == ("random", "request")
    assert 4 <= len(compression.images[0].index) <= 8
    bounds, default = model.policy.bounds, budget_text(model.policy.default_budget)
    assert (default, bounds.min_tokens, bounds.max_tokens) == ("auto:4..8", 4, 8)
    assert model.policy.default_method == "cdpruner"


def test_policy_when_the_file_changes_applies_to_new_requests(ask, keys_file):
    def budget():
        return ask("plain").budget

    assert budget() == "32"
    keys_file.write_text(KEYS.replace("- key: plain", "- key: plain\n    policy: {default_budget: 9}"))
    until(lambda: budget() == "9")
    keys_file.write_text(KEYS)
    until(lambda: budget() == "32")


def test_file_when_its_new_version_is_broken_changes_nothing(ask, keys_file, gateway):
    keys_file.write_text(KEYS.replace("plain", "other").replace("max_tokens: 8", "max_tokens: 1"))

    def lines():
        return [text for text in gateway.log.read_text().splitlines() if "keys not read again" in text]

    until(lambda: bool(lines()))
    assert ask("plain").budget == "32"
    with pytest.raises(AuthenticationError):
        ask("other")
    reason = json.loads(lines()[0])["reason"]
    assert reason == "keys[3].policies.fsr-tiny: max_tokens: 1 is below min_tokens 4; raise it"
    keys_file.write_text(KEYS + "  - key: after\n")

    def known():
        try:
            return ask("after").budget == "32"
        except AuthenticationError:
            return False

    until(known)
    assert len(lines()) == 1
