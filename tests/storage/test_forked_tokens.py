"""Who asks: a forked child has clients of its own, since a parent's have connections."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

APPLICATION = {"tenant_id": "t", "client_id": "c", "client_secret": "s"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("azure://container/p", {"account_name": "a", **APPLICATION}),
        ("onedrive://drive/folder", APPLICATION),
        ("gs://bucket/p", {}),
    ],
)
def test_a_forked_child_asks_for_tokens_by_itself(url: str, options: dict[str, str]) -> None:
    # In a process of its own: pytest's has threads.
    code = f"""
import os
from types import SimpleNamespace
import azure.identity, google.auth, httpx
from pharmabackup.storage import connect

class Client:
    def __init__(self, *_):
        self.made = f"Bearer {{os.getpid()}}"
    def get_token(self, _):
        return SimpleNamespace(token=self.made.removeprefix("Bearer "))
    def before_request(self, _, method, url, headers):
        headers["Authorization"] = self.made

azure.identity.ClientSecretCredential = Client
google.auth.default = lambda **_: (Client(), "project")
storage = connect({url!r}, storage_options={options!r})

def is_own():
    request = httpx.Request("GET", "https://example.com/")
    storage._authorize(request)
    return request.headers["Authorization"] == f"Bearer {{os.getpid()}}"

assert is_own()
for _ in range(2):
    if not (child := os.fork()):
        os._exit(not is_own())
    assert os.waitpid(child, 0)[1] == 0
assert is_own()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
