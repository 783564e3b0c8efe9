"""The plugin without an agent: one verb in this process, from the environment and standard input."""

from __future__ import annotations

import json
import os
import sys
import traceback

from nodenet.cni.conf import failure, version_answer
from nodenet.cni.errors import CniError, Code
from nodenet.cni.patience import heed, leave_orderly
from nodenet.cni.protocol import Reply
from nodenet.cni.request import Request, parse


def main() -> int:
    """Do what the environment says; the exit status. Standard output is the specification's, always."""
    leave_orderly()
    stdin = sys.stdin.buffer.read()
    reply = run(dict(os.environ), stdin)
    sys.stdout.buffer.write(reply.stdout)
    sys.stdout.buffer.flush()
    return reply.status


def run(environment: dict[str, str], stdin: bytes) -> Reply:
    """One verb. Never raises for what the runtime or the kernel did."""
    try:
        request = parse(environment, stdin)
        if request.verb == "VERSION":
            return Reply(0, version_answer(stdin).encode())
        if _requires_agent(stdin):
            code = Code.NOT_AVAILABLE if request.verb == "STATUS" else Code.TRY_AGAIN
            raise CniError(code, "the agent of this node is not running, and requireAgent is set")
        return _run(request)
    except CniError as error:
        return failure(stdin, error)
    except Exception as error:  # noqa: BLE001 - the edge: the runtime needs JSON, a person the traceback
        traceback.print_exc()
        return failure(stdin, CniError(Code.INTERNAL, f"internal error: {type(error).__name__}: {error}"))


def _run(request: Request) -> Reply:
    # Imported here: what only prints the version, or an error, needs none of it.
    from nodenet.cni.plugin import Plugin

    plugin = Plugin(step=heed)
    try:
        return plugin.run(request)
    finally:
        plugin.close()


def _requires_agent(stdin: bytes) -> bool:
    try:
        data = json.loads(stdin)
    except ValueError:
        return False
    return isinstance(data, dict) and data.get("requireAgent") is True
