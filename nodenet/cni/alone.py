"""The plugin without an agent: one verb in this process, from the environment and standard input."""

from __future__ import annotations

import os
import sys
import traceback

from nodenet.cni.conf import decode, failure, version_answer
from nodenet.cni.errors import CniError, Code
from nodenet.cni.protocol import Reply
from nodenet.cni.request import Request, parse
from nodenet.cni.signals import block_termination_signals, raise_if_signalled

# With requireAgent these verbs fail if no agent is running. DEL and CHECK work without one: the agent learns of removed
# pods from the endpoint files.
_WITH_AGENT = {"ADD": Code.TRY_AGAIN, "STATUS": Code.NOT_AVAILABLE}


def main() -> int:
    """Run the verb that the environment names and return the exit status. Standard output carries only what the
    specification defines."""
    block_termination_signals()
    stdin = sys.stdin.buffer.read()
    reply = run(dict(os.environ), stdin)
    sys.stdout.buffer.write(reply.stdout)
    sys.stdout.buffer.flush()
    return reply.status


def run(environment: dict[str, str], stdin: bytes) -> Reply:
    """Run one verb. Never raises for errors of the runtime or the kernel."""
    try:
        request = parse(environment, stdin)
        if request.verb == "VERSION":
            return Reply(0, version_answer(stdin).encode())
        if request.verb in _WITH_AGENT and _requires_agent(stdin):
            raise CniError(
                _WITH_AGENT[request.verb],
                "the agent of this node is not running, and without it the pod's policies would not be enforced",
                "start the agent, or set requireAgent to false in the CNI configuration to start pods without one",
            )
        return _run(request)
    except CniError as error:
        return failure(stdin, error)
    except Exception as error:  # noqa: BLE001 - the edge: the runtime needs JSON, a person the traceback
        traceback.print_exc()
        return failure(stdin, CniError(Code.INTERNAL, f"internal error: {type(error).__name__}: {error}"))


def _run(request: Request) -> Reply:
    # Imported here: VERSION and early errors do not need it.
    from nodenet.cni.plugin import Plugin

    plugin = Plugin(step=raise_if_signalled)
    try:
        return plugin.run(request)
    finally:
        plugin.close()


def _requires_agent(stdin: bytes) -> bool:
    """Raises CniError if the configuration is not a JSON object."""
    return decode(stdin).get("requireAgent") is True
