"""Fixtures of the ingest tests."""

from collections.abc import Iterator

import pytest

from tests.ingest.web import Web


@pytest.fixture(scope="session")
def server() -> Iterator[Web]:
    web = Web()
    yield web
    web.close()
