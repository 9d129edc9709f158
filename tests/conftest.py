"""Fixtures that several rooms share."""

import importlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one may take long: tests never time
hypothesis.settings.load_profile("any machine")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores: parallel test processes must not fight over them


def pytest_configure() -> None:
    """Before anything imports triton: without a GPU the kernels for one run on the CPU, in its interpreter."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Another -m on the command line takes the place of the default, which leaves tests for a GPU out."""
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            for item in items:
                if item.get_closest_marker("gpu"):
                    item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images used by some tests; they skip where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SEER_PIPE_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}: set SEER_PIPE_DATA to run this test")
    return folder


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A client of an S3-compatible server on loopback, which the environment points to meanwhile."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield boto3.client("s3")
    server.stop()


@pytest.fixture(scope="module")
def slurm_cluster() -> Iterator[Path]:
    """The folder of a real Slurm of two virtual nodes on this machine, which the environment points to meanwhile."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("no Slurm here: slurm/local-cluster/install.sh installs one")
    scripts = Path(__file__).resolve().parents[1] / "slurm" / "local-cluster"
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as parent, pytest.MonkeyPatch.context() as patch:
        folder = Path(parent) / "cluster"  # short: the path of a socket has a limit
        subprocess.run([scripts / "start.sh", folder, "2"], check=True, env=dict(os.environ, NODE_TIMEOUT="20"))
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            yield folder
        finally:
            subprocess.run([scripts / "stop.sh", folder], check=True)
            assert not folder.exists()


@pytest.fixture(scope="session")
def torchvision() -> Iterator[ModuleType]:
    """torchvision, the reference for names, features and pixels.

    PyPI's wheel is built against torch with CUDA. Beside a CPU-only torch its compiled operators do not load, and
    importing it fails on two that it only registers shapes for, so these two are declared here. A test that
    imports timm, or whatever else builds on torchvision, asks for this fixture and imports inside.
    """
    import torch

    declared = torch.library.Library("torchvision", "FRAGMENT")  # its declarations live as long as this object
    folder = Path(find_spec("torchvision").origin).parent
    try:
        torch.ops.load_library(str(next(folder.glob("_C*.so"))))
    except OSError:
        for operator in ("nms", "qnms"):
            declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield importlib.import_module("torchvision")  # noqa: PT022 (returning would end the declarations)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium here: pip install '.[browser]'")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield page
    page.quit()
