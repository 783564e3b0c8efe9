"""The root command. Subcommands are imported only when they run, so that `nodenet --help` is fast."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import click

from nodenet.cli.extras import missing_extra
from nodenet.cli.shown import ShownError
from nodenet.errors import CannotRunError, NodenetError


class _Lazy(NamedTuple):
    """The location of a command, and its line in the root's help."""

    target: str
    help: str
    # The extra with the modules that the core installation lacks. Commands of the core need such modules only for
    # --lab.
    extra: str = "lab"


COMMANDS: dict[str, _Lazy] = {
    "agent": _Lazy("nodenet.cli.agent:agent", "Run the node agent in the foreground.", "agent"),
    "bench": _Lazy("nodenet.cli.bench:bench", "Measure eBPF against iptables, nftables and IPVS.", "bench"),
    "bpf": _Lazy("nodenet.cli.bpf:bpf", "Build and inspect the eBPF objects."),
    "cleanup": _Lazy("nodenet.cli.cleanup:cleanup", "Remove what nodenet or kube-proxy left on a node.", "agent"),
    "cni": _Lazy("nodenet.cli.cni:cni", "Install the CNI plugin and show its leases."),
    "completion": _Lazy("nodenet.cli.completion:completion", "Print a shell's completion script."),
    "connectivity": _Lazy("nodenet.cli.connectivity:connectivity", "Test a cluster's network with pods.", "agent"),
    "ct": _Lazy("nodenet.cli.show:ct", "Connection tracking entries of the node."),
    "endpoint": _Lazy("nodenet.cli.show:endpoint", "Pods that are attached to the node."),
    "identity": _Lazy("nodenet.cli.show:identity", "Label sets and their numbers."),
    "install": _Lazy("nodenet.cli.install:install", "Install nodenet on a cluster.", "agent"),
    "ipcache": _Lazy("nodenet.cli.show:ipcache", "Addresses and the identities behind them."),
    "lab": _Lazy("nodenet.cli.lab:lab", "Virtual nodes on this machine."),
    "map": _Lazy("nodenet.cli.maps:map_", "eBPF maps: entries, size, usage."),
    "monitor": _Lazy("nodenet.cli.monitor:monitor", "Print raw datapath events."),
    "node": _Lazy("nodenet.cli.node:node", "Prepare this node for the agent.", "agent"),
    "observe": _Lazy("nodenet.cli.observe:observe", "Show flows with names, verdicts and reasons."),
    "program": _Lazy("nodenet.cli.maps:program", "eBPF programs: where they are attached, how often they ran."),
    "policy": _Lazy("nodenet.cli.policy:policy", "Compute, explain, check and suggest NetworkPolicies."),
    "service": _Lazy("nodenet.cli.service:service", "Services as the datapath balances them."),
    "status": _Lazy("nodenet.cli.show:status", "Show whether the agent is healthy, and its state."),
    "sysdump": _Lazy("nodenet.cli.sysdump:sysdump", "Collect a report about a cluster as one tar file.", "agent"),
    "trace": _Lazy("nodenet.cli.trace:trace", "Trace packet drops in the host's network stack."),
    "uninstall": _Lazy("nodenet.cli.install:uninstall", "Delete nodenet from a cluster.", "agent"),
    "upgrade": _Lazy("nodenet.cli.install:upgrade", "Change nodenet on a cluster to this version.", "agent"),
}


class LazyGroup(click.Group):
    """A group that imports a command only when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        module, _, attribute = lazy.target.partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{lazy.target} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Uses only the table COMMANDS: `--help` imports no command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NodenetError as error:
            raise ShownError(error) from error
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand
            shown = missing_extra(error, name, COMMANDS[name].extra) if name in COMMANDS else None
            if shown is None:
                raise
            raise ShownError(shown) from error
        except KeyboardInterrupt:
            raise SystemExit(130) from None  # as a shell counts Ctrl-C: 128 + SIGINT
        except BrokenPipeError:
            raise  # click exits silently when the reader of stdout is closed
        except OSError as error:
            raise ShownError(_system_error(error)) from error


def _system_error(error: OSError) -> NodenetError:
    """An OSError as an error for users."""
    where = f"{error.filename}: " if error.filename is not None else ""
    what = f"{where}{error.strerror or str(error) or type(error).__name__}"
    denied = isinstance(error, PermissionError) and os.geteuid() != 0
    return CannotRunError(what, "run as root" if denied else "")


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"nodenet {version('nodenet')}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def root() -> None:
    """The network of a Kubernetes node in Python and eBPF: CNI, Services, NetworkPolicy, flows, lab and benchmark."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `nodenet` script."""
    root.main(args=list(sys.argv[1:] if arguments is None else arguments), prog_name="nodenet")
