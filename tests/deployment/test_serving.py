"""Where a server may listen, and how it begins and ends."""

import asyncio
import datetime
import ipaddress
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fake_half import FakeHalf, parameters
from served import NAMES, TOKENS

from dynamic_graph_fed_rl.deployment import serving, wire
from dynamic_graph_fed_rl.deployment.settings import ServerSettings


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"host": "0.0.0.0"}, "--certfile, --keyfile, --join-token-file, or --insecure"),
        ({"host": "::"}, "host ::"),
        ({"host": "example.org", "join_token": "x"}, "--certfile, --keyfile, or"),
        ({"certfile": "/nowhere/chain.pem"}, "both or neither"),
        ({"certfile": "/nowhere/chain.pem", "keyfile": "/nowhere/key.pem"}, "chain.pem: no such file"),
    ],
)
def test_a_server_is_not_exposed_by_accident(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        serving.refuse_exposure(ServerSettings(**options))


@pytest.mark.parametrize(
    "options", [{}, {"host": "::1"}, {"host": "localhost"}, {"host": "0.0.0.0", "insecure": True}]
)
def test_this_machine_and_what_is_asked_for_are_served(options: dict) -> None:
    serving.refuse_exposure(ServerSettings(**options))


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(TimeoutError, match="not ready"):
            serving.wait_until_ready(f"http://127.0.0.1:{taken.getsockname()[1]}", 0.1)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return chain, secret


def started(folder: Path, chain: Path, secret: Path) -> tuple[subprocess.Popen, str]:
    worker = Path(__file__).with_name("serving_worker.py")
    source = Path(serving.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(worker), str(folder), str(chain), str(secret)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(source)},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_server_speaks_tls_and_ends_when_it_is_told_to(tmp_path) -> None:
    chain, secret = certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(chain))
    process, url = started(tmp_path / "state", chain, secret)
    body = parameters(2.0)
    try:
        assert url.startswith("https://127.0.0.1:")
        serving.wait_until_ready(url, 20.0, trust)
        for stranger in (url.replace("https", "http"), url):
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{stranger}/healthz")
        with httpx.Client(base_url=url, verify=trust) as client:
            agreement = wire.agreement(wire.parameters_schema(4), FakeHalf().experience_schema)
            for name, token in zip(NAMES[:2], TOKENS, strict=False):
                asked = {"protocol": 1, "agreement": agreement, "name": name, "token": token}
                assert client.post("/v1/clients", json=asked).status_code == 200
                answer = client.put(
                    f"/v1/clients/{name}/weights/0",
                    content=body,
                    headers={
                        "Authorization": f"Bearer {token}",
                        "Content-Type": wire.CONTENT_TYPE,
                        wire.DIGEST_HEADER: wire.digest(body),
                    },
                )
                assert answer.status_code == 200 and answer.headers.get("server") is None
        assert waits(url, trust, "?after=0&wait=20").status_code == 200

        async def told_while_somebody_waits() -> httpx.Response:
            waiting = asyncio.create_task(asyncio.to_thread(waits, url, trust, "?after=1&wait=50"))
            await asyncio.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            return await waiting

        began = time.monotonic()
        assert asyncio.run(told_while_somebody_waits()).status_code == 304
        out, _ = process.communicate(timeout=20)
        assert time.monotonic() - began < 10
        assert "closed" in out
    finally:
        process.kill()
        process.communicate()

    process, url = started(tmp_path / "state", chain, secret)
    try:
        answer = waits(url, trust, "")
        assert answer.headers["X-Round"] == "1"
        assert wire.unpack(answer.content, wire.parameters_schema(4))[wire.PARAMETERS].tolist() == [2.0] * 4
    finally:
        process.kill()
        process.communicate()


def waits(url: str, trust: ssl.SSLContext, query: str) -> httpx.Response:
    bearer = {"Authorization": f"Bearer {TOKENS[0]}"}
    return httpx.get(f"{url}/v1/params{query}", headers=bearer, verify=trust, timeout=60)
