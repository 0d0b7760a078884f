"""Downloads from a local server that can be set to fail."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from train.config.errors import InputError
from train.data.download import download

CONTENT = np.random.default_rng(0).integers(0, 256, 700_001, dtype=np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at every path."""

    ranges = True  # supports range requests
    cut_after: int | None = None  # bytes after which the connection closes
    length = True  # sends Content-Length

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []  # the Range of each request
        self.url = f"http://127.0.0.1:{self.server_address[1]}/data.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        if self.path == "/missing":
            return self.send_error(404)
        if start >= len(CONTENT):
            return self.send_error(416)
        self.send_response(206 if asked and self.server.ranges else 200)
        if asked and self.server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if self.server.length:
            self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = len(CONTENT) if self.server.cut_after is None else start + self.server.cut_after
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "data.tar.gz"


def files(target):
    return sorted(file.name for file in target.parent.iterdir())


@pytest.mark.parametrize("length", [True, False])
def test_complete_download_equals_the_file(server, target, length):
    server.length = length
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT and files(target) == ["data.tar.gz"]


def test_lost_connection_is_resumed(server, target):
    server.cut_after = 300_000
    with pytest.raises(InputError, match=r"lost after 300000 of 700001 bytes.*the same command resumes"):
        download(server.url, target, MD5)
    assert files(target) == ["data.tar.gz.part"]
    with pytest.raises(InputError, match="lost after 600000"):
        download(server.url, target, MD5)
    server.cut_after = None
    download(server.url, target, MD5)
    assert server.asked == [None, "bytes=300000-", "bytes=600000-"]
    assert target.read_bytes() == CONTENT and files(target) == ["data.tar.gz"]


def test_server_without_ranges_restarts_the_download(server, target):
    server.ranges = False
    target.parent.mkdir()
    target.with_name("data.tar.gz.part").write_bytes(CONTENT[:1000])
    server.cut_after = 300_000
    with pytest.raises(InputError, match="lost after 300000 of 700001"):
        download(server.url, target, MD5)
    server.cut_after = None
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT and files(target) == ["data.tar.gz"]


def test_complete_part_file_is_accepted(server, target):
    target.parent.mkdir()
    target.with_name("data.tar.gz.part").write_bytes(CONTENT)
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT and files(target) == ["data.tar.gz"]


@pytest.mark.parametrize("part", [b"x" * 1000, CONTENT + b"x"])
def test_wrong_part_file_is_deleted_then_downloaded(server, target, part):
    target.parent.mkdir()
    target.with_name("data.tar.gz.part").write_bytes(part)
    with pytest.raises(InputError, match=r"not the expected file .* deleted, try again"):
        download(server.url, target, MD5)
    assert files(target) == []
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT


def test_file_with_wrong_md5_is_deleted(server, target):
    with pytest.raises(InputError, match=f"md5 {MD5}, not {'0' * 32}"):
        download(server.url, target, "0" * 32)
    assert files(target) == []


def test_http_error_is_reported(server, target):
    with pytest.raises(InputError, match="the server says 404 Not Found"):
        download(server.url.replace("data.tar.gz", "missing"), target, MD5)
    assert files(target) == []


def test_refused_connection_is_reported(server, target):
    url = server.url.replace(str(server.server_address[1]), "1")
    with pytest.raises(InputError, match=r"download of .* failed"):
        download(url, target, MD5)
    assert files(target) == []


def test_unwritable_folder_is_reported(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        download(server.url, tmp_path / "file" / "data.tar.gz", MD5)
