"""Ask three public tools, in the interpreter that has them: see `studies/public_tools.py`.

A line of JSON on stdin names the files of a recording; the answer is what each tool found.
"""

import contextlib
import io
import json
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from fbc.cachelint.cli import main as fbc_cache_lint
from inferpilot.cli import main as inferpilot
from vllm_doctor.cli import app as vllm_doctor
from vllm_doctor.cli import diagnose  # noqa: F401 - makes the command


class Server(BaseHTTPRequestHandler):
    """A server of which there is one scrape."""

    scrape = b""

    def do_GET(self) -> None:
        """Show it."""
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(self.scrape)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def told(run: Callable[[list[str]], object], *typed: str) -> Any:
    """What a command prints, as JSON."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run(list(typed))
    return json.loads(out.getvalue())


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/metrics"
for line in sys.stdin:
    asked = json.loads(line)
    Server.scrape = Path(asked["after"]).read_bytes()
    verdict = told(inferpilot, "doctor", asked["before"], asked["after"], "--json")["verdict"]
    doctor = told(
        lambda typed: vllm_doctor(typed, standalone_mode=False), "diagnose", url, "-o", "json"
    )
    lint = told(fbc_cache_lint, "report", asked["all"], "--json", "--fail-on", "none")
    found = {
        "inferpilot 0.1.0": [] if verdict == "healthy_or_underutilized" else [verdict],
        "vllm-doctor 0.6.0": [each["id"] for each in doctor["checks"] if each["finding"]],
        "fbc-cache-lint 0.1.0": [each["code"] for each in lint["findings"]],
    }
    print(json.dumps(found), flush=True)
