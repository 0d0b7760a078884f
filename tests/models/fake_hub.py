"""A local HTTP server with the part of the Hugging Face Hub that huggingface_hub uses to download a file."""

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `files`, {"owner/name": {"file": content}}; for a dataset, the key is "datasets/owner/name".

    Attributes:
        url: the address, for HF_ENDPOINT.
        gated: repositories that need a log-in.
        cuts: downloads still to be cut off in the middle; after the first cut, they send nothing at all.
        down: whether to answer 503 to all requests.
        absent: the error code for a repository that does not exist.
        requests: (method, path) of the requests for files so far.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.cuts, self.down, self.absent = 0, False, "RepoNotFound"
        self.requests: list[tuple[str, str]] = []
        hub, first = self, [True]

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                if "/resolve/" in self.path:
                    hub.requests.append((self.command, self.path))
                repository, _, rest = self.path.strip("/").partition("/resolve/")
                revision, _, file = rest.partition("/")
                if hub.down:
                    return self.answer(503)
                if repository in hub.gated:
                    return self.answer(401, error="GatedRepo")
                if repository not in hub.files:
                    return self.answer(401, error=hub.absent)  # as for a private repository
                if revision not in ("main", COMMIT):
                    return self.answer(404, error="RevisionNotFound")
                if file not in hub.files[repository]:
                    return self.answer(404, error="EntryNotFound")
                return self.answer(200, hub.files[repository][file])

            do_GET = do_HEAD  # noqa: N815

            def answer(self, status, content=b"", error=None):
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-") or 0)
                if self.command == "GET" and hub.cuts and not first[0]:
                    hub.cuts -= 1
                    return self.connection.close()
                self.send_response(206 if start and status == 200 else status)
                self.send_header("X-Repo-Commit", COMMIT)
                if error:
                    self.send_header("X-Error-Code", error)
                if status == 200:
                    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                    self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                if self.command == "GET" and hub.cuts and status == 200:
                    hub.cuts -= 1
                    first[0] = False
                    content = content[: len(content) // 2]
                if self.command == "GET":
                    self.wfile.write(content[start:])

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub_server(monkeypatch, tmp_path):
    """A server in place of the Hub, and an empty cache; huggingface_hub retries without waiting."""
    from huggingface_hub import constants, utils

    fake = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    template = f"{fake.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None}))
    utils.disable_progress_bars()
    utils.logging.set_verbosity_error()
    yield fake
    fake.close()
