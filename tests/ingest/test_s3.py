"""Shard sets, archives and lists on S3: the same bytes as in a folder."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from ingest.files import expand
from seer_pipe.errors import UserError
from seer_pipe.shards import ShardSet
from tests.ingest.helpers import files, seer_ingest, stored
from tests.ingest.test_archive import write_tar
from tests.ingest.test_run import fill
from tests.ingest.web import Web, jpeg

ACCESS = {
    "AWS_ACCESS_KEY_ID": "accesskey-of-test",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def configure(environment: pytest.MonkeyPatch, endpoint: str) -> None:
    for name, value in (ACCESS | {"AWS_ENDPOINT_URL": endpoint}).items():
        environment.setenv(name, value)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    configure(monkeypatch, f"http://{host}:{port}")
    boto3.client("s3").create_bucket(Bucket="images")
    yield "images"
    server.stop()


def objects(bucket: str, prefix: str) -> dict[str, bytes]:
    client = boto3.client("s3")
    found = client.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    return {
        item["Key"].removeprefix(prefix): client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
        for item in found
    }


@pytest.mark.slow
def test_out_to_s3_and_in_from_it(tmp_path: Path, bucket: str) -> None:
    folder = fill(tmp_path / "in", 20)
    for out in (tmp_path / "out", f"s3://{bucket}/set"):
        run = seer_ingest("folder", folder, "--out", out, "--unit", 8)
        assert run.returncode == 0, run.stderr
    assert objects(bucket, "set/") == files(tmp_path / "out")

    client = boto3.client("s3")
    members = [(f"{number}.jpg", tarfile.REGTYPE, jpeg(number)) for number in range(20)]
    client.upload_file(str(write_tar(tmp_path / "a.tar.gz", members)), bucket, "in/a.tar.gz")
    table = pa.table({"image": [jpeg(number) for number in range(20)], "n": range(20)})
    pq.write_table(table.slice(0, 12), tmp_path / "a.parquet", row_group_size=5)
    with pa.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema) as stream:
        stream.write_table(table.slice(12), max_chunksize=3)
    for name in ("a.parquet", "b.arrow"):
        client.upload_file(str(tmp_path / name), bucket, f"tables/{name}")
    for arguments in (
        ("archive", f"s3://{bucket}/in", "--out", f"s3://{bucket}/from-archive"),
        ("parquet", f"s3://{bucket}/tables", "--out", f"s3://{bucket}/from-tables", "--keep-columns", "n"),
        ("webdataset", f"s3://{bucket}/set", "--out", f"s3://{bucket}/from-set", "--unit", 8),
        ("index", f"s3://{bucket}/set/00001.tar", "--out", tmp_path / "index"),
    ):
        run = seer_ingest(*arguments)
        assert run.returncode == 0, run.stderr
    assert len(ShardSet.open(f"s3://{bucket}/from-archive")) == 20
    assert ShardSet.open(f"s3://{bucket}/from-tables").sidecar(0)["n"].to_pylist() == list(range(20))
    assert objects(bucket, "from-set/")["00002.tar"] == files(tmp_path / "out")["00002.tar"]
    index = ShardSet.open(tmp_path / "index")
    assert index.paths == [f"s3://{bucket}/set/00001.tar"]
    assert index.read(0, index.sidecar(0).to_pylist()[3]) == index.get_range(
        0, *(index.sidecar(0)[name][3].as_py() for name in ("offset", "length"))
    )


def test_a_list_on_s3(tmp_path: Path, bucket: str, server: Web) -> None:
    text = "".join(server.url(f"/jpeg/{number}\n") for number in range(4)).encode()
    boto3.client("s3").put_object(Bucket=bucket, Key="lists/a.txt", Body=text)
    run = seer_ingest("urls", f"s3://{bucket}/lists", "--out", tmp_path / "out", "--allow-network", "127.0.0.0/8")
    assert run.returncode == 0, run.stderr
    assert len(stored(tmp_path / "out")) == 4


def test_a_bucket_that_is_not_there_is_one_line(tmp_path: Path, bucket: str) -> None:
    run = seer_ingest("folder", fill(tmp_path / "in", 1), "--out", "s3://nowhere/set")
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "error: s3://nowhere/set: there is no bucket nowhere\n"


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
def test_a_prefix_is_a_folder_and_a_key_is_as_it_is(tmp_path: Path) -> None:
    client, bucket = boto3.client("s3"), "prefixes"  # one that no other test writes into
    client.create_bucket(Bucket=bucket)
    keys = ["crawl1/a.tar", "crawl10/b.tar", "crawl1-old/c.tar", "crawl1/._a.tar", "ha#sh/d?e=1/f%20//g*.tar"]
    for number, key in enumerate(keys):
        members = [(f"{number}.jpg", tarfile.REGTYPE, jpeg(number))]
        client.upload_file(str(write_tar(tmp_path / f"{number}.tar", members)), bucket, key)
    for where, found in {
        "crawl1": keys[:1],
        "crawl1/": keys[:1],
        "crawl1*": ["crawl1-old/c.tar", "crawl1/a.tar", "crawl10/b.tar"],
        "crawl1/*": keys[:1],
        "ha#sh": keys[-1:],
        keys[-1]: keys[-1:],
        "": sorted(key for key in keys if "._" not in key),
    }.items():
        assert expand(f"s3://{bucket}/{where}", [".tar"]) == [f"s3://{bucket}/{key}" for key in found], where
    with pytest.raises(UserError, match="no such file"):
        expand(f"s3://{bucket}/crawl", [".tar"])
    run = seer_ingest("index", f"s3://{bucket}/ha#sh", "--out", f"s3://{bucket}/in#dex", "--workers", 1)
    assert run.returncode == 0, run.stderr
    shards = ShardSet.open(f"s3://{bucket}/in#dex")
    assert shards.read(0, shards.sidecar(0).to_pylist()[0]) == jpeg(4)
