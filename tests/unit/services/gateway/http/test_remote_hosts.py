import ipaddress

import pytest

from fsr.gateway.http.pictures.network import is_public
from fsr.gateway.options.allowed_hosts import AllowedHosts, BadUrl, RemoteUrl


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("http://example.org", ("http", "example.org", 80, "/", "example.org")),
        ("HTTPS://Example.ORG/a/b%20c.png?q=1&r#part", ("https", "example.org", 443, "/a/b%20c.png?q=1&r", None)),
        ("https://example.org:8443/x", ("https", "example.org", 8443, "/x", "example.org:8443")),
        ("https://example.org:443/", ("https", "example.org", 443, "/", "example.org")),
        ("https://93.184.216.34/", ("https", "93.184.216.34", 443, "/", "93.184.216.34")),
        ("http://[2606:2800:220::1]:81/", ("http", "2606:2800:220::1", 81, "/", "[2606:2800:220::1]:81")),
        ("https://xn--bcher-kva.example/?", ("https", "xn--bcher-kva.example", 443, "/", None)),
    ],
)
def test_url_in_its_plain_form_is_taken_apart(text, parts):
    url = RemoteUrl.parse(text)
    *expected, authority = parts
    assert [url.scheme, url.host, url.port, url.target] == expected
    assert url.authority == (authority or url.host)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.org/a.png",
        "//example.org/a.png",
        "ftp://example.org/a.png",
        "file:///etc/passwd",
        "gopher://example.org/",
        "http://",
        "http:///a.png",
        "http:example.org/a.png",
        "https://me:secret@example.org/",
        "https://example.org@127.0.0.1/",
        "https://example.org\\@127.0.0.1/",
        "https:\\\\example.org/",
        "https://exa mple.org/",
        "https://example.org/a b.png",
        "https://example.org/\r\nHost: other",
        "https://exam\tple.org/",
        "https://ex%61mple.org/",
        "https://bücher.example/",
        "https://example.org./",
        "https://.example.org/",
        "https://-example.org/",
        "https://example..org/",
        f"https://{'a' * 64}.org/",
        f"https://{'a.' * 127}org/",
        "https://example.org:/",
        "https://example.org:080/",
        "https://example.org:65536/",
        "https://example.org:-1/",
        "https://example.org:8o/",
        "https://0x7f.1/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://127.1/",
        "https://127.0.0.01/",
        "https://0177.0.0.1/",
        "https://127.0.0.1.0x1/",
        "https://1.2.3.256/",
        "https://[::1/",
        "https://::1/",
        "https://[fe80::1%25eth0]/",
        "https://[fe80::1%eth0]/",
        "https://[::0001]/",
        "https://[v1.x]/",
        "https://example.org/" + "a" * 8192,
    ],
)
def test_url_in_another_form_is_refused_with_a_remedy(text):
    with pytest.raises(BadUrl, match=r".+; (write|leave|use|percent-encode) "):
        RemoteUrl.parse(text)


@pytest.mark.parametrize(
    ("location", "becomes"),
    [
        ("/other.png?x", "https example.org 8443 /other.png?x"),
        ("other.png", "https example.org 8443 /a/other.png"),
        ("//cdn.example/x", "https cdn.example 443 /x"),
        ("http://cdn.example/x", "http cdn.example 80 /x"),
        ("?q", "https example.org 8443 /a/b?q"),
    ],
)
def test_redirect_is_relative_to_the_url(location, becomes):
    url = RemoteUrl.parse("https://example.org:8443/a/b").redirected(location)
    assert f"{url.scheme} {url.host} {url.port} {url.target}" == becomes


@pytest.mark.parametrize(
    "location", ["http://[::1", "ftp://example.org/", "//me@example.org/", "/a b", "http://127.1/"]
)
def test_redirect_to_no_plain_url_is_refused(location):
    with pytest.raises(BadUrl, match="is redirected to a URL that"):
        RemoteUrl.parse("https://example.org/a").redirected(location)


@pytest.mark.parametrize(
    ("entry", "admitted", "refused"),
    [
        ("a.org", [("a.org", 80), ("a.org", 443)], [("a.org", 8080), ("b.a.org", 443), ("aa.org", 443)]),
        ("A.org:8080", [("a.org", 8080)], [("a.org", 80), ("a.org", 443)]),
        ("*.a.org", [("b.a.org", 443), ("c.b.a.org", 80)], [("a.org", 443), ("xa.org", 443), ("b.a.org", 444)]),
        ("*.a.org:1", [("b.a.org", 1)], [("b.a.org", 80)]),
        ("*", [("a.org", 443), ("93.184.216.34", 80)], [("a.org", 22)]),
        ("10.0.0.1", [("10.0.0.1", 80)], [("10.0.0.2", 80)]),
        ("[FD00::1]:81", [("fd00::1", 81)], [("fd00::1", 80)]),
    ],
)
def test_allowed_hosts_admit_what_an_entry_means(entry, admitted, refused):
    hosts = AllowedHosts([entry])
    assert hosts and all(hosts.admit(*one) for one in admitted)
    assert not any(hosts.admit(*one) for one in refused)
    assert hosts.names(*admitted[0]) == ("*" not in entry)


@pytest.mark.parametrize(
    "entry",
    ["http://a.org", "a.org/", "a.org:0", "a.org:65536", "a.org:x", "*a.org", "a.*", "**.a", "127.1", "a b", "*."],
)
def test_allowed_host_that_is_none_is_refused(entry):
    with pytest.raises(ValueError, match="is no host; write host, host:port"):
        AllowedHosts([entry])


def test_no_allowed_host_is_false_and_admits_none():
    hosts = AllowedHosts([])
    assert not hosts and not hosts.admit("a.org", 443)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450::1", "2001:4860::8888"])
def test_public_address(address):
    assert is_public(ipaddress.ip_address(address))


SPECIAL = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.0.170",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:1.1.1.1",
    "64:ff9b::7f00:1",
    "64:ff9b::101:101",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", SPECIAL)
def test_special_address_is_not_public(address):
    assert not is_public(ipaddress.ip_address(address))
