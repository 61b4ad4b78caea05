"""One system, a gateway with keys before it, a good neighbour, and hostile callers in a process of their own."""

import io
import os
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fsr_core.tiny.scenes import draw, make_scene
from helpers.hostile.footprint import Footprint
from helpers.hostile.keys import FILE, NEIGHBOUR
from helpers.hostile.neighbour import Neighbour, p99
from helpers.processes import encoder_proxy, encoder_replica, process_of
from helpers.waiting import until

TIMES_SLOWER = 3  # at most, than with nobody else there
_report = pytest.StashKey[list[str]]()


@dataclass(frozen=True)
class Form:
    """The whole form sends what the tables say and asserts times. The short one sends less, and asserts only what
    other work on the machine cannot change."""

    whole: bool

    def of(self, short, whole):
        return whole if self.whole else short


@pytest.fixture(
    scope="session",
    params=[pytest.param(Form(False), id="short"), pytest.param(Form(True), id="whole", marks=pytest.mark.cluster)],
)
def form(request):
    return request.param


@pytest.fixture(scope="session")
def picture():
    """A small PNG, a scene of 48 x 48."""
    return png(draw(make_scene(4)).resize((48, 48)))


def png(picture):
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def keys_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "keys.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="session")
def slots(form):
    """Of the gateway; as many requests may wait. More than the hostile key may take (see `helpers.hostile.keys`)."""
    return form.of(12, 64)


@pytest.fixture(scope="session")
def gateway(system, spawn_for_session, keys_file, free_ports, slots):
    """In front of the running system, with keys. `http`: its other address; `footprint`: what its process takes."""
    decoders = ",".join(system[f"decoder-{number}"] for number in range(2))
    flags = ("--encoders", system["encoder"], "--decoders", decoders, "--api-keys-file", str(keys_file))
    port = free_ports()
    flags += ("--http-port", str(port), "--stall-seconds", "5")
    service = spawn_for_session("gateway", *flags, "--max-requests", str(slots), "--max-waiting", str(slots))
    service.wait_until_serving()
    service.http = f"127.0.0.1:{port}"
    service.footprint = Footprint(psutil.Process(service._process.pid))
    return service


@pytest.fixture(scope="session")
def services(system, gateway):
    """What the process of each service takes, by its name; `encoder` is the replica, `proxy` what listens for it."""
    encoder = system["encoder"].rpartition(":")[2]
    processes = {"encoder": encoder_replica(encoder), "proxy": encoder_proxy(encoder)}
    for name in ("decoder-0", "decoder-1"):
        processes[name] = process_of("decoder", system[name].rpartition(":")[2])
    return {"gateway": gateway.footprint} | {name: Footprint(process) for name, process in processes.items()}


@pytest.fixture(scope="session")
def neighbour(form, gateway):
    neighbour = Neighbour(gateway.address, gateway.http, NEIGHBOUR, png(draw(make_scene(4))), form.of(0.5, 0.02))
    yield neighbour
    neighbour.close()


@pytest.fixture(scope="session")
def expected(neighbour):
    """What the neighbour is answered to each of its questions when nobody else is there."""
    answers = neighbour.asks(16)
    assert {answer.code for answer in answers} == {"OK"}, answers
    texts = {(answer.question, answer.answer) for answer in answers}
    assert len(texts) == len(dict(texts))  # the same text each time, by gRPC and by HTTP
    return dict(texts)


@pytest.fixture(scope="session")
def attackers(form):
    """`attackers(function, ...)` runs a function of helpers in the attackers' process.

    They have machines of their own in the world. Where times count they must not take the services' processors.
    """
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=os.nice, initargs=(form.of(0, 19),)) as pool:
        yield lambda function, *arguments, **options: pool.submit(function, *arguments, **options).result()


@pytest.fixture
def beside(form, neighbour, expected, gateway, request):
    """`beside(attack)`: attacks, in the whole form again and again while the neighbour is answered 200 times.

    Meanwhile the neighbour's answers are those of a quiet service; in the whole form they come in time, too, unless
    the attack is not `timed`.
    """

    def beside(attack: Callable[[], None], once: bool = False, timed: bool = True) -> None:
        quiet = neighbour.asks(200) if form.whole else []
        gateway.footprint.reset_peak()
        before, began = gateway.footprint.memory, time.monotonic()
        with neighbour.asking(form.of(2, 200)) as answers:
            attack()
            while form.whole and not once and time.monotonic() < began + sum(answer.seconds for answer in quiet):
                time.sleep(0.5)
                attack()
        wrong = [a for a in quiet + answers if (a.code, a.answer) != ("OK", expected[a.question])]
        assert not wrong, wrong[:5]
        if form.whole:
            times = f"{1000 * p99(quiet):5.0f} {1000 * p99(answers):5.0f} {p99(answers) / p99(quiet):5.1f}"
            memory = f"{before:5.0f} {gateway.footprint.peak:5.0f} {gateway.footprint.memory:5.0f}"
            request.config.stash[_report].append(f"{times}   {memory}   {request.node.name}")
            assert not timed or p99(answers) <= TIMES_SLOWER * p99(quiet), (p99(answers), p99(quiet))

    return beside


@pytest.fixture(autouse=True)
def unharmed(gateway, services):
    """No test costs a replica its place or its process, and none leaves requests, threads or files behind."""

    def harm() -> dict[str, float]:
        page = urllib.request.urlopen(f"http://{gateway.metrics}/metrics").read().decode()
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        opened = sum(s.value for s in samples if s.name in ("fsr_ejections_total", "fsr_replicas_ejected"))
        failed = sum(s.value for s in samples if s.labels.get("code") in ("INTERNAL", "UNKNOWN"))
        return {"circuit breakers opened": opened, "requests failed by the service's fault": failed}

    before = {name: (service.threads, service.files) for name, service in services.items()}
    harmed = harm()
    yield
    until(lambda: gateway.metric("fsr_requests_in_flight") == 0)
    assert harm() == harmed
    for name, service in services.items():
        assert service.process.is_running(), f"{name} has ended"
    threads, files = before["gateway"]
    until(lambda: gateway.footprint.threads <= threads + 4 and gateway.footprint.files <= files + 8, 60)


def pytest_configure(config):
    config.stash[_report] = []


def pytest_terminal_summary(terminalreporter, config):
    if lines := config.stash[_report]:
        terminalreporter.section("hostile callers")
        terminalreporter.line("neighbour's p99 in ms: quiet, beside, ratio; gateway's MiB: before, peak, after")
        for line in lines:
            terminalreporter.line(line)
