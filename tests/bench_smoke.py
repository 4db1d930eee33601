"""One smoke run of every benchmark case and baseline, shared by the test files that look at it."""

import functools
import json
import tempfile
from pathlib import Path

import pytest
from nearlinear.__main__ import main


@functools.cache
def document():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "smoke.json"
        assert main(["bench", "--smoke", "--device", "cpu", "--quiet", "--json", str(path)]) == 0
        return json.loads(path.read_text())


@pytest.fixture(name="smoke")
def smoke_fixture():
    return document()
