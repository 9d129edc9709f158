"""Downloads over https: whose certificates are trusted, and what is said of the others."""

import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ingest.helpers import COMMAND, rejected, seer_ingest, stored
from tests.ingest.web import Web


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed but itself, with its key."""
    file = tmp_path_factory.mktemp("tls") / "own.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=own"]
    files = ["-keyout", str(file), "-out", str(file.with_suffix(".crt")), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    with file.open("ab") as joined:
        joined.write(file.with_suffix(".crt").read_bytes())
    return file


@pytest.fixture(scope="module")
def secure(certificate: Path) -> Iterator[Web]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    web = Web(context)
    yield web
    web.close()


def test_an_own_authority_is_named_by_the_environment(tmp_path: Path, secure: Web, certificate: Path) -> None:
    """And a name that is not the certificate's is refused all the same, as is a server without TLS."""
    good = [secure.url(f"/jpeg/{number}") for number in range(3)]
    other = secure.url("/jpeg/4", host="127.0.0.2")
    plain = secure.url("/jpeg/5").replace("https", "http")
    (tmp_path / "list.txt").write_text("\n".join([*good, other, plain]))
    arguments = ["urls", tmp_path / "list.txt", "--out", tmp_path / "out", "--allow-network", "127.0.0.0/8"]
    run = subprocess.run(
        [*COMMAND, *map(str, arguments), "--tries", "1"], capture_output=True, text=True, timeout=120,
        env=os.environ | {"SSL_CERT_FILE": str(certificate.with_suffix(".crt"))},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert [row["source"] for row in stored(tmp_path / "out")] == good
    assert rejected(tmp_path / "out") == {other: "tls", plain: "connect"}


def test_what_nobody_vouches_for_is_not_fetched(tmp_path: Path, secure: Web, server: Web) -> None:
    before = secure.asked.total()
    bad = [
        secure.url("/jpeg/1"),
        server.url("/jpeg/1").replace("http", "https"),
        server.url(f"/to?url={secure.url('/')}"),
    ]
    (tmp_path / "list.txt").write_text("\n".join(bad))
    run = seer_ingest("urls", tmp_path / "list.txt", "--out", tmp_path / "out", "--allow-network", "127.0.0.0/8")
    assert run.returncode == 0, run.stderr
    assert rejected(tmp_path / "out") == dict.fromkeys(bad, "tls")
    assert secure.asked.total() == before
