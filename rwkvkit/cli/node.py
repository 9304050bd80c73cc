"""What ``rwkvkit train --hostfile`` starts on each host over ssh; see ``workflow.remote``."""

import json
import os
import queue
import select
import signal
import sys
import threading
import time
from typing import Any

from rwkvkit.cli.boundary import caught
from rwkvkit.cli.console import Console
from rwkvkit.errors import LostProcess
from rwkvkit.workflow.launch import Launch, free_port, start
from rwkvkit.workflow.remote import MARK, SILENCE_SECONDS, write_error

_STDIN = 0
_LAST_SECONDS = 5.0  # to kill the processes before this one leaves in any case


def main() -> None:
    """Start and watch this machine's processes as the orders on stdin say, and exit."""
    work: queue.Queue[dict[str, Any]] = queue.Queue()
    lost = threading.Event()
    threading.Thread(target=_listen, args=(work, lost), daemon=True).start()
    error = caught(lambda: _run(work))
    if lost.is_set():
        sys.exit(LostProcess.exit_code)
    if error is not None:
        _tell(error=write_error(error))
        sys.exit(error.exit_code)


def _run(work: "queue.Queue[dict[str, Any]]") -> None:
    _tell(port=free_port())
    order = work.get()
    os.environ.update(order["environment"])
    start(Launch(**order["launch"]), order["arguments"], Console(as_json=False).note)


def _listen(work: "queue.Queue[dict[str, Any]]", lost: threading.Event) -> None:
    """Follow orders; when they end, kill what was started."""
    rest = b""
    while select.select([_STDIN], [], [], SILENCE_SECONDS)[0]:
        chunk = os.read(_STDIN, 1 << 16)
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        for line in filter(None, lines):
            if line.startswith(b"{"):
                work.put(json.loads(line))
            else:
                os.kill(os.getpid(), signal.Signals[line.decode()])
    lost.set()
    # Two requests to stop, of two kinds so that they do not become one, kill the processes.
    for number in (signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)
    time.sleep(_LAST_SECONDS)
    os._exit(1)  # with it die its processes (Linux)


def _tell(**facts: Any) -> None:
    """Write a line for the launcher, in one piece."""
    os.write(2, f"\n{MARK}{json.dumps(facts)}\n".encode())


if __name__ == "__main__":
    main()
