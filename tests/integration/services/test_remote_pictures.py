"""Pictures by URL from real HTTP and HTTPS servers, good and bad ones. Only names are resolved by a table."""

import asyncio
import gzip
import json
import ssl
import time
from contextlib import asynccontextmanager

import httpcore2
import pytest
import trustme

from fsr.common.errors import Expired, InvalidRequest
from fsr.gateway.http.pictures.network import PublicNetwork
from fsr.gateway.http.pictures.remote import RemotePictures
from fsr.gateway.options.allowed_hosts import AllowedHosts
from fsr.gateway.options.settings import GatewaySettings
from fsr.gateway.requests.deadline import Deadline
from helpers.waiting import until

FIELD = "messages[0].content[0].image_url.url"
FILE = bytes(range(256)) * 40


class Names:
    """What names resolve to: a list of addresses, or several lists, one for each lookup."""

    def __init__(self, **addresses):
        self.addresses = {f"{name}.test": answer for name, answer in addresses.items()}
        self.lookups = []

    async def __call__(self, host, port):
        self.lookups.append(host)
        answer = self.addresses.get(host, [host])
        return answer.pop(0) if isinstance(answer[0], list) else answer


class Site:
    """A server whose paths send bytes as they are, one by one with a pause between, and then close."""

    def __init__(self):
        self.paths, self.requests, self.ended = {}, [], asyncio.Event()
        self.open = self.most_open = 0
        self.pause = 0.0

    def file(self, path, body=FILE, status="200 OK", **headers):
        headers = {"content_type": "image/png", "content_length": len(body), **headers}
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None]
        self.paths[path] = ["\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode(), body]

    def redirect(self, path, location, status="302 Found"):
        self.file(path, b"", status, location=location)

    async def __call__(self, reader, writer):
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            while request := (await reader.readuntil(b"\r\n\r\n")).decode():
                self.requests.append(request)
                for piece in self.paths[request.split()[1]]:
                    if piece is None:  # says nothing more
                        await reader.read()
                    writer.write(piece or b"")
                    await writer.drain()
                    await asyncio.sleep(self.pause)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            self.ended.set()
            writer.close()


@asynccontextmanager
async def serving(site, host="127.0.0.1", port=0, tls=None):
    server = await asyncio.start_server(site, host, port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        server.close_clients() if hasattr(server, "close_clients") else None


@pytest.fixture
async def site():
    """`site.port` is its port on 127.0.0.1; the name site.test stands for it."""
    site = Site()
    async with serving(site) as site.port:
        yield site


@asynccontextmanager
async def fetching(names, *hosts, networks=("127.0.0.1/32",), **options):
    """A function that fetches URLs as the gateway does, where 127.0.0.1 stands for a public address."""
    settings = GatewaySettings(http_image_hosts=list(hosts), http_image_networks=list(networks), **options)
    network = PublicNetwork(AllowedHosts(hosts), settings.http_image_networks, names)
    pictures = RemotePictures(settings, network)

    async def fetch(*urls, seconds=60.0):
        fields = {FIELD.replace("0", str(number), 1): url for number, url in enumerate(urls)}
        return list((await pictures.fetch(fields, Deadline(seconds))).values())

    yield fetch


@asynccontextmanager
async def fetching_from(site, **options):
    async with fetching(Names(site=["127.0.0.1"]), f"site.test:{site.port}", **options) as fetch:
        yield fetch


async def test_picture_of_an_allowed_host_comes_as_it_is(site):
    site.file("/a.png?size=2")
    async with fetching_from(site) as fetch:
        assert await fetch(f"http://site.test:{site.port}/a.png?size=2#top") == [FILE]
    (request,) = site.requests
    lines = request.lower().split("\r\n")
    assert lines[0] == "get /a.png?size=2 http/1.1" and f"host: site.test:{site.port}" in lines
    assert "accept-encoding: identity" in lines
    assert not [line for line in lines if line.startswith(("cookie", "authorization", "referer"))]


async def test_several_pictures_come_at_once_but_not_all(site):
    site.pause = 0.01
    for number in range(9):
        site.file(f"/{number}", bytes([number]) * 100)
    url = f"http://site.test:{site.port}/"
    async with fetching_from(site) as fetch:
        files = await fetch(*(f"{url}{number}" for number in range(9)), f"{url}3")
    assert [file[0] for file in files] == [*range(9), 3]
    assert len(site.requests) == 9 and 2 <= site.most_open <= 4


async def test_no_host_is_allowed_by_default():
    async with fetching(Names(), networks=()) as fetch:
        with pytest.raises(InvalidRequest, match=r"^messages\[0\].+--http-image-hosts is not set\); send .+data:image"):
            await fetch("https://example.org/a.png")
        assert await fetch() == []


@pytest.mark.parametrize(
    "url", ["http://other.test:{port}/a", "http://site.test/a", "https://site.test/a", "http://127.0.0.1:{port}/a"]
)
async def test_host_or_port_that_is_not_allowed_is_refused_and_not_resolved(site, url):
    names = Names(site=["127.0.0.1"], other=["127.0.0.1"])
    async with fetching(names, f"site.test:{site.port}") as fetch:
        with pytest.raises(InvalidRequest, match=r"has a host that is not allowed here, .+; have it added"):
            await fetch(url.format(port=site.port))
    assert not names.lookups and not site.requests


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.2"],
        ["127.0.0.1", "10.0.0.1"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["fe80::1%eth0"],
        ["224.0.0.1"],
    ],
)
async def test_host_with_an_address_that_is_not_public_is_refused(site, addresses):
    async with fetching(Names(site=addresses), f"site.test:{site.port}") as fetch:
        with pytest.raises(InvalidRequest, match=r"has a host whose address is not public; send") as refused:
            await fetch(f"http://site.test:{site.port}/a")
    assert not site.requests and addresses[-1] not in str(refused.value)


async def test_private_network_is_only_for_hosts_named_in_full(site):
    site.file("/a")
    names = Names(site=["127.0.0.1"])
    names.addresses["a.site.test"] = ["127.0.0.1"]
    async with fetching(names, f"*.site.test:{site.port}", f"site.test:{site.port}") as fetch:
        assert await fetch(f"http://site.test:{site.port}/a") == [FILE]
        with pytest.raises(InvalidRequest, match="not public"):
            await fetch(f"http://a.site.test:{site.port}/a")


async def test_ip_addresses_as_hosts_are_checked_too(site):
    site.file("/a")
    port = site.port
    async with fetching(Names(), f"127.0.0.1:{port}", f"127.0.0.2:{port}", f"[::1]:{port}") as fetch:
        assert await fetch(f"http://127.0.0.1:{port}/a") == [FILE]
        for host in ("127.0.0.2", "[::1]"):
            with pytest.raises(InvalidRequest, match="not public"):
                await fetch(f"http://{host}:{port}/a")


async def test_name_that_resolves_anew_leads_nowhere_else(site):
    """DNS rebinding: the address that was checked is the one that is connected to."""
    site.file("/a")
    names = Names(site=[["127.0.0.1"], ["127.0.0.2"]])
    inside = Site()
    async with serving(inside, "127.0.0.2", site.port), fetching(names, f"site.test:{site.port}") as fetch:
        assert await fetch(f"http://site.test:{site.port}/a") == [FILE]
        assert names.lookups == ["site.test"]
        with pytest.raises(InvalidRequest, match="not public"):
            await fetch(f"http://site.test:{site.port}/a")
    assert len(site.requests) == 1 and not inside.requests


async def test_address_that_does_not_answer_leaves_the_next_one(site):
    site.file("/a")
    names = Names(site=["127.0.0.9", "127.0.0.1"])  # nobody listens at the first
    async with fetching(names, f"site.test:{site.port}", networks=["127.0.0.0/8"]) as fetch:
        assert await fetch(f"http://site.test:{site.port}/a") == [FILE]


async def test_redirects_are_followed_to_allowed_hosts_alone(site):
    site.file("/end")
    port = site.port
    site.redirect("/relative", "end")
    site.redirect("/twice", f"http://site.test:{port}/relative", "308 Permanent Redirect")
    site.redirect("/elsewhere", f"http://other.test:{port}/end")
    site.redirect("/inside", f"http://inside.test:{port}/end")
    site.redirect("/user", f"http://me@site.test:{port}/end")
    site.redirect("/loop", "/loop")
    site.file("/nowhere", b"", "302 Found")
    names = Names(site=["127.0.0.1"], other=["127.0.0.1"], inside=["127.0.0.2"])
    inside = Site()
    async with (
        serving(inside, "127.0.0.2", port),
        fetching(names, f"site.test:{port}", f"inside.test:{port}") as fetch,
    ):
        assert await fetch(f"http://site.test:{port}/relative") == [FILE]
        assert await fetch(f"http://site.test:{port}/twice") == [FILE]
        for path, says in (
            ("elsewhere", "a host that is not allowed here, other.test"),
            ("inside", "has a host whose address is not public"),
            ("user", "is redirected to a URL that has a user name"),
            ("loop", "is redirected more than 3 times"),
            ("nowhere", "is answered with status 302"),
        ):
            with pytest.raises(InvalidRequest, match=says):
                await fetch(f"http://site.test:{port}/{path}")
    assert "other.test" not in names.lookups and not inside.requests


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def secure(authority, monkeypatch, tmp_path):
    """A server context for a name; clients trust the authority, by the variable that operators set."""
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(file)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))

    def context(name, issuer=authority):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issuer.issue_cert(name).configure_cert(tls)
        return tls

    return context


async def test_certificate_must_be_the_hosts_own(secure):
    site = Site()
    site.file("/a")
    async with serving(site, tls=secure("site.test")) as port:
        names = Names(site=["127.0.0.1"], other=["127.0.0.1"])
        async with fetching(names, f"site.test:{port}", f"other.test:{port}") as fetch:
            assert await fetch(f"https://site.test:{port}/a") == [FILE]
            with pytest.raises(InvalidRequest, match=r"has a host whose certificate is not trusted; check the URL"):
                await fetch(f"https://other.test:{port}/a")
    stranger = Site()
    async with (
        serving(stranger, tls=secure("site.test", trustme.CA())) as port,
        fetching(Names(site=["127.0.0.1"]), f"site.test:{port}") as fetch,
    ):
        with pytest.raises(InvalidRequest, match="certificate is not trusted"):
            await fetch(f"https://site.test:{port}/a")
    assert len(site.requests) == 1 and not stranger.requests


async def test_redirect_from_https_to_http_is_refused(secure, site):
    site.file("/a")
    safe = Site()
    async with serving(safe, tls=secure("site.test")) as port:
        safe.redirect("/a", f"http://site.test:{site.port}/a")
        names = Names(site=["127.0.0.1"])
        async with fetching(names, f"site.test:{port}", f"site.test:{site.port}") as fetch:
            with pytest.raises(InvalidRequest, match="is redirected from https to http"):
                await fetch(f"https://site.test:{port}/a")
    assert not site.requests


async def test_file_over_the_bound_is_left(site):
    """By what comes, whatever was announced."""
    endless = [b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"]
    endless += [b"4000\r\n" + b"x" * 0x4000 + b"\r\n"] * 1000
    site.file("/most", b"x" * 50_000)
    site.file("/honest", b"x" * 50_001)
    site.paths["/chunked"] = endless
    site.paths["/until-closed"] = [b"HTTP/1.0 200 OK\r\n\r\n", *[b"x" * 0x4000] * 1000, None]
    site.file("/more-than-announced", b"x" * 100_000, content_length=10)
    site.file("/absurd", b"", content_length="9" * 5000)
    async with fetching_from(site, max_image_bytes=50_000) as fetch:
        url = f"http://site.test:{site.port}"
        assert await fetch(f"{url}/most") == [b"x" * 50_000]
        for path in ("honest", "chunked", "until-closed"):
            with pytest.raises(InvalidRequest, match=r"has more than 50000 bytes; scale"):
                await fetch(f"{url}/{path}")
        with pytest.raises(InvalidRequest, match="does not answer properly"):
            await fetch(f"{url}/absurd")
        assert await fetch(f"{url}/more-than-announced") == [b"x" * 10]


async def test_files_together_over_the_bound_are_left(site):
    for number in range(3):
        site.file(f"/{number}", b"x" * 40_000)
    async with fetching_from(site, max_image_bytes=50_000, max_images_bytes=100_000) as fetch:
        urls = [f"http://site.test:{site.port}/{number}" for number in range(3)]
        assert len(await fetch(*urls[:2])) == 2
        with pytest.raises(InvalidRequest, match=r"pictures have more than 100000 bytes together; scale"):
            await fetch(*urls)


async def test_answer_that_is_no_picture_is_refused(site):
    site.file("/missing", b"none", "404 Not Found")
    site.file("/page", b"<html>", content_type="text/html; charset=utf-8")
    site.file("/zipped", gzip.compress(FILE), content_encoding="gzip")
    site.file("/empty", b"")
    site.file("/cut", b"xx", content_length=10)
    site.paths["/cut"].append(b"")
    site.paths["/noise"] = [b"SSH-2.0-OpenSSH_9\r\n\r\n", None]
    site.paths["/headers"] = [b"HTTP/1.1 200 OK\r\n", b"X: " + b"x" * 200_000 + b"\r\n\r\n"]
    site.file("/unnamed", content_type=None)
    site.file("/binary", content_type="application/octet-stream")
    async with fetching_from(site, http_image_seconds=1.0) as fetch:
        for path, says in (
            ("missing", "is answered with status 404; check the URL"),
            ("page", "is no picture but 'text/html'; give"),
            ("zipped", "with a compression that was not asked for; send"),
            ("empty", "is empty; check"),
            ("cut", "is not here after 1 s; send"),
            ("noise", "has a host that does not answer properly; check"),
            ("headers", "has a host that does not answer properly; check"),
        ):
            with pytest.raises(InvalidRequest, match=says):
                await fetch(f"http://site.test:{site.port}/{path}")
        assert await fetch(f"http://site.test:{site.port}/unnamed") == [FILE]
        assert await fetch(f"http://site.test:{site.port}/binary") == [FILE]


async def test_host_that_nobody_answers_for_is_refused(free_ports):
    port = free_ports()

    async def no_such_name(host, port):
        raise OSError(-2, "Name or service not known")

    for names in (Names(site=["127.0.0.1"]), no_such_name, Names(site=[[]])):
        async with fetching(names, f"site.test:{port}") as fetch:
            with pytest.raises(
                InvalidRequest, match="has a host that does not answer properly; check the URL, or send"
            ):
                await fetch(f"http://site.test:{port}/a")


@pytest.mark.parametrize("path", ["silent", "dripping"])
async def test_slow_host_is_left_at_the_end_of_the_time(site, path):
    site.paths["/silent"] = [None]
    site.paths["/dripping"] = [b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n", *[b"x"] * 10_000]
    site.pause = 0.02
    url = f"http://site.test:{site.port}/{path}"
    async with fetching_from(site, http_image_seconds=0.3) as fetch:
        began = time.monotonic()
        with pytest.raises(InvalidRequest, match=r"is not here after 0.3 s; send the picture as a data URI"):
            await fetch(url)
        assert time.monotonic() - began < 10
    await asyncio.wait_for(site.ended.wait(), 10)  # the connection is closed
    async with fetching_from(site) as fetch:
        with pytest.raises(Expired):
            await fetch(url, seconds=0.3)


async def test_caller_who_leaves_ends_the_fetch(site):
    site.paths["/silent"] = [None]
    async with fetching_from(site) as fetch:
        task = asyncio.create_task(fetch(f"http://site.test:{site.port}/silent"))
        while not site.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(site.ended.wait(), 10)


KEY = "open-sesame"


@pytest.fixture(scope="module")
def gateway(spawn, free_ports):
    """A gateway without replicas, that takes one request at a time and may fetch from `site_port` of this machine."""
    http_port, site_port = free_ports(), free_ports()
    flags = ("--encoders", "127.0.0.1:9", "--decoders", "127.0.0.1:9", "--max-requests", "1", "--api-keys", KEY)
    flags += ("--max-waiting", "0", "--http-port", str(http_port), "--http-image-hosts", f"localhost:{site_port}")
    service = spawn("gateway", *flags, "--http-image-networks", "127.0.0.0/8,::1/128")
    service.site_port, service.url = site_port, f"http://127.0.0.1:{http_port}/v1/chat/completions"
    service.wait_until_it_says('"event": "serving"')
    return service


@asynccontextmanager
async def asking(gateway):
    """A site at the gateway's port, and a function that asks about a picture of it: status and error."""
    site = Site()
    site.file("/a")
    site.paths["/silent"] = [None]

    async def ask(path, key=KEY, **fields):
        part = {"type": "image_url", "image_url": {"url": f"http://localhost:{gateway.site_port}{path}"}}
        body = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}], **fields}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        async with httpcore2.AsyncConnectionPool() as pool:
            response = await pool.request("POST", gateway.url, headers=headers, content=json.dumps(body).encode())
        return response.status, json.loads(response.content)["error"]

    async with serving(site, "127.0.0.1", gateway.site_port):
        yield site, ask


async def test_gateway_fetches_for_known_and_admitted_callers_alone(gateway):
    async with asking(gateway) as (site, ask):
        status, _ = await ask("/a", key="wrong")
        assert status == 401 and not site.requests
        status, _ = await ask("/a")
        assert status == 503 and len(site.requests) == 1  # no replica is there, but the picture was fetched
        first = asyncio.create_task(ask("/silent"))
        while len(site.requests) < 2:
            await asyncio.sleep(0.01)
        status, _ = await ask("/a")
        assert status == 429 and len(site.requests) == 2
        first.cancel()  # hangs up
        await asyncio.wait_for(site.ended.wait(), 60)
    await asyncio.to_thread(until, lambda: gateway.metric("fsr_requests_in_flight") == 0)
    assert gateway.metric("fsr_requests_total", code="CANCELLED", interface="http") == 1


async def test_gateway_leaves_a_slow_host_at_the_callers_deadline(gateway):
    async with asking(gateway) as (_, ask):
        status, error = await ask("/silent", fsr={"timeout": 0.5})
        assert (status, error["param"]) == (504, "fsr.timeout") and "passed before" in error["message"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--http-image-hosts", "https://example.org/a"), "'https://example.org/a' is no host; write host, host:port"),
        (("--http-image-networks", "10.0.0.0/8"), "http_image_networks: needs http_image_hosts"),
        (("--http-image-hosts", "a.org", "--http-image-networks", "10.0.0.1/8"), "error: --http-image-networks: "),
    ],
)
def test_gateway_with_a_wrong_option_says_so(flags, says):
    with pytest.raises(SystemExit, match=says):
        GatewaySettings.load(list(flags))
