"""The plugin without an agent: one verb in this process, from the environment and standard input."""

from __future__ import annotations

import os
import sys
import traceback

from nodenet.cni.conf import decode, failure, version_answer
from nodenet.cni.errors import CniError, Code
from nodenet.cni.patience import heed, leave_orderly
from nodenet.cni.protocol import Reply
from nodenet.cni.request import Request, parse

# What is not done without an agent where requireAgent is set. A pod can be removed, and looked at, without one: the
# agent finds out by the endpoint files.
_WITH_AGENT = {"ADD": Code.TRY_AGAIN, "STATUS": Code.NOT_AVAILABLE}


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
        if request.verb in _WITH_AGENT and _requires_agent(stdin):
            raise CniError(
                _WITH_AGENT[request.verb],
                "the agent of this node is not running, and without it the pod's policies would not hold",
                "start the agent; requireAgent false in the CNI configuration has pods start without one",
            )
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
    """Raises CniError when the configuration is none."""
    return decode(stdin).get("requireAgent") is True
