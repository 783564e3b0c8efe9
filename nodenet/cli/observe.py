"""`nodenet observe`: shows flows with names, verdicts and reasons; it has the flags of the hubble CLI."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click

from nodenet.cli import times
from nodenet.cli.flow_filter import FLAGS, Choice, Flag, build, split_not
from nodenet.cli.flow_words import TimeFormat
from nodenet.cli.format_flow import Options, Output, Printer
from nodenet.cli.target import Target, target_options, targets
from nodenet.errors import BadInputError

DEFAULT_LAST = 20
ALL = (1 << 64) - 1
# The fields that the lines show. Others, such as labels, are not requested.
PRINTED_FIELDS = (
    "time", "verdict", "ethernet", "IP", "l4", "source.identity", "source.namespace", "source.pod_name",
    "destination.identity", "destination.namespace", "destination.pod_name", "Type", "node_name", "event_type",
    "source_service", "destination_service", "traffic_direction", "policy_match_type", "drop_reason_desc", "is_reply",
    "sock_xlate_point", "egress_allowed_by", "ingress_allowed_by", "egress_denied_by", "ingress_denied_by", "Summary",
)  # fmt: skip


class FilterCommand(click.Command):
    """Accepts `--not` before any filter, and collects all filters in `ctx.meta`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args[:1] == ["flows"]:  # the hubble CLI's `observe flows`, which is what this always does
            args = args[1:]
        try:
            args = split_not(args)
        except BadInputError as error:
            raise click.UsageError(f"{error} {error.hint}".rstrip(), ctx) from error
        return super().parse_args(ctx, args)


def _remember(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> None:
    name = param.opts[0].removeprefix("--")
    negated = name.startswith("not-")
    flag = name.removeprefix("not-")
    ctx.meta.setdefault("nodenet.choices", []).extend(Choice(flag, value, negated) for value in values)


def _option(name: str, flag: Flag, negated: bool) -> Callable[[Any], Any]:
    words = [f"--not-{name}"] if negated else [f"--{name}", *([f"-{flag.short}"] if flag.short else [])]
    constant: dict[str, Any] = {}
    if flag.constant or flag.optional:
        constant = {"flag_value": flag.constant or flag.optional, "is_flag": bool(flag.constant)}
    return click.option(
        *words,
        "not_" + name.replace("-", "_") if negated else name.replace("-", "_"),
        multiple=True,
        metavar=None if flag.constant else flag.metavar,
        help=flag.help,
        hidden=negated,
        expose_value=False,
        callback=_remember,
        **constant,
    )


def filter_options(command: Any) -> Any:
    """Every filter flag of flow_filter.FLAGS, plain and negated."""
    for name, flag in reversed(FLAGS.items()):
        command = _option(name, flag, True)(command)
        command = _option(name, flag, False)(command)
    return command


def _time_option(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        return times.parse(value, datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from error


@click.command(cls=FilterCommand, context_settings={"max_content_width": 120})
@click.option(
    "--last", type=click.IntRange(min=1), metavar="N", help=f"The newest N flows ({DEFAULT_LAST} by default)."
)
@click.option("--first", type=click.IntRange(min=1), metavar="N", help="The oldest N flows in memory.")
@click.option("--all", "everything", is_flag=True, help="All flows in memory.")
@click.option(
    "--since", callback=_time_option, metavar="TIME", help="Flows since this time: 5m, 1h30m, 2026-01-31T12:00:00Z."
)
@click.option("--until", callback=_time_option, metavar="TIME", help="Flows until this time.")
@click.option("-f", "--follow", is_flag=True, help="Also show new flows.")
@click.option("--not", "negate", is_flag=True, expose_value=False, help="Exclude flows that match the next filter.")
@filter_options
@click.option(
    "-o", "--output", type=click.Choice([o.value for o in Output]), default="compact", show_default=True,
    help="How to print flows.",
)  # fmt: skip
@click.option(
    "--time-format", type=click.Choice([t.value for t in TimeFormat], case_sensitive=False), default="StampMilli",
    show_default=True, help="How to print times; they are UTC.",
)  # fmt: skip
@click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", show_default=True)
@click.option("--print-node-name", is_flag=True, help="Print the node of each flow (always on with several nodes).")
@click.option("--numeric", is_flag=True, help="Show addresses instead of names.")
@click.option("--ip-translation/--no-ip-translation", default=True, help="Show names instead of addresses.")
@click.option("-v", "--explain", is_flag=True, help="For allowed connections, show the rule too.")
@click.option("--print-raw-filters", is_flag=True, help="Print the filters as JSON and exit.")
@target_options
@click.pass_context
def observe(ctx: click.Context, /, **options: Any) -> None:
    """Show flows with names, verdicts and reasons.

    Different filters must all match; several uses of one filter are alternatives. Drops name the policies that isolate
    the pod. --lab NAME shows the flows of all nodes of a lab, sorted by time.
    """
    where = {name: options[name] for name in ("socket", "server", "lab", "node")}
    whitelist, blacklist = build(ctx.meta.get("nodenet.choices", []))
    if options["print_raw_filters"]:
        _print_filters(whitelist, blacklist)
        return
    request = make_request(options, whitelist, blacklist)
    found = targets(where)
    printer = Printer(_print_options(options, len(found) > 1))
    with suppress(KeyboardInterrupt):  # Ctrl-C is the normal end of --follow
        asyncio.run(_run(found, request, printer))


def make_request(options: dict[str, Any], whitelist: list[Any], blacklist: list[Any]) -> Any:
    """The GetFlowsRequest for the options. Raises BadInputError for options that exclude each other."""
    from nodenet.rpc.pb.observer import observer_pb2

    last, first, follow, everything = (options[name] for name in ("last", "first", "follow", "everything"))
    for one, other in (("first", "last"), ("first", "everything"), ("first", "follow"), ("last", "everything")):
        if options[one] and options[other]:
            words = [("all" if name == "everything" else name) for name in (one, other)]
            raise BadInputError(f"--{words[0]} and --{words[1]} cannot be combined")
    if follow and options["output"] == Output.TABLE:
        raise BadInputError("--output table and --follow cannot be combined", "a table can only be printed at the end")
    request = observer_pb2.GetFlowsRequest(follow=follow, first=bool(first), whitelist=whitelist, blacklist=blacklist)
    bounded = options["since"] or options["until"]
    if everything:
        request.number = ALL
    elif first or last:
        request.number = first or last
    # With a time range or --follow there is no default number: show everything in the range, or only new flows.
    elif not bounded and not follow:
        request.number = DEFAULT_LAST
    for name in ("since", "until"):
        if options[name]:
            getattr(request, name).FromDatetime(options[name].astimezone(UTC).replace(tzinfo=None))
    if options["output"] not in (Output.JSON, Output.JSONPB):
        request.field_mask.paths.extend(PRINTED_FIELDS)
    return request


def _print_options(options: dict[str, Any], several: bool) -> Options:
    color = {"always": True, "never": False}.get(options["color"], sys.stdout.isatty())
    return Options(
        output=Output(options["output"]),
        time_format=TimeFormat(options["time_format"]),
        node_name=options["print_node_name"] or several,
        translate=options["ip_translation"] and not options["numeric"],
        color=color,
        explain=options["explain"],
    )


def _print_filters(whitelist: list[Any], blacklist: list[Any]) -> None:
    from nodenet.cli.format_flow import to_json

    for name, messages in (("allowlist", whitelist), ("denylist", blacklist)):
        if messages:
            click.echo(f"{name}:")
            for message in messages:
                click.echo(f"    - '{to_json(message)}'")


async def _run(where: list[Target], request: Any, printer: Printer) -> None:
    from nodenet.cli import streams

    def warn(text: str) -> None:
        click.echo(f"nodenet: {text}", err=True)

    if request.follow:
        async for answer in streams.follow(where, request, warn):
            _print_lines(printer.lines(answer))
    else:
        for answer in await streams.collect(where, request, warn):
            _print_lines(printer.lines(answer))
        _print_lines(printer.close())


def _print_lines(lines: Any) -> None:
    for line in lines:
        click.echo(line)
