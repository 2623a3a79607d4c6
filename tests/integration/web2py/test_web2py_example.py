"""The one command that starts the example, as a user types it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.web.web2py_server import ANSWER_S, ROOT, needs_web2py

#: Until everything is up, or down, on a busy machine, s.
PATIENCE_S = 120


@contextmanager
def command(*options: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-u", "-m", "examples.web2py", "--engine", "embedded", *options]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_one_command_brings_the_shop_up_without_any_server_installed_and_ctrl_c_takes_all_of_it_down():
    needs_web2py(here=True)
    with command("--port", "0") as process:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C takes" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        [url] = re.findall(r"http://\S+", said)
        [config] = re.findall(r"its configuration: (.+)", said)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=ANSWER_S) as answer:
            page = answer.read().decode()

        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=PATIENCE_S)

    assert "Latest purchases" in page
    assert "replica" in page
    assert process.returncode == 0
    assert "everything is down again" in rest
    assert not Path(config).parent.exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(url.split(":")[2].split("/")[0]))) != 0


def test_a_port_that_is_taken_is_named_and_nothing_is_started():
    needs_web2py(here=True)
    with socket.create_server(("127.0.0.1", 0)) as taken, command("--port", str(taken.getsockname()[1])) as process:
        said, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 1
    assert "is in use" in said
    assert "is ready" not in said
