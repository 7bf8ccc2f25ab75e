"""The command that shows and sets the owner's rules: configure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click

import pharmabackup as pb
from pharmabackup.cli.app import pharmabackup
from pharmabackup.cli.output import Output
from pharmabackup.cli.reports import counted
from pharmabackup.cli.settings import Duration, Settings, Verb
from pharmabackup.clock import spelled
from pharmabackup.results import Rules

COUNT = click.IntRange(min=0)
Command = Callable[..., None]
ORDER = f"{__name__}.order"


class InOrder(Verb):
    """Keeps in which order options were given: each --dataset begins a rule, and --keep-... say how much it keeps."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, ctx.meta[ORDER] = self.make_parser(ctx).parse_args(list(args))
        return super().parse_args(ctx, args)


def _option(name: str, kind: click.ParamType[Any], metavar: str, text: str) -> Callable[[Command], Command]:
    return click.option(f"--keep-{name}", name, type=kind, multiple=True, metavar=metavar, help=text)


@pharmabackup.command(cls=InOrder)
@click.option(
    "--dataset",
    "datasets",
    metavar="[DEVICE/]NAME[:LABEL]",
    multiple=True,
    help="What the rule that follows is for, with * and ? if need be; all. Each begins a rule.",
)
@_option("last", COUNT, "N", "The newest N.")
@_option("within", Duration(), "30d", "All that are no older than that.")
@_option("hourly", COUNT, "N", "The newest of each of the last N hours.")
@_option("daily", COUNT, "N", "The newest of each of the last N days.")
@_option("weekly", COUNT, "N", "The newest of each of the last N weeks.")
@_option("monthly", COUNT, "N", "The newest of each of the last N months.")
@_option("yearly", COUNT, "N", "The newest of each of the last N years.")
@click.option("--keep-all", "everything", is_flag=True, help="No rules: everything is kept.")
@click.option(
    "--forget-delay", "days", type=COUNT, metavar="DAYS", help="So long what is forgotten can be called back."
)
@click.option(
    "--quorum", type=click.IntRange(min=1), metavar="N", help="So many people have to agree before a forget counts."
)
@click.option(
    "--reason-required/--no-reason-required",
    "reasoned",
    default=None,
    help="Whether nothing is restored or looked into without --reason.",
)
@click.option(
    "--lock",
    type=Duration(),
    help="For how long nobody can delete what is stored, in places that can lock it: 35d. 0d sets no more locks.",
)
@click.pass_context
def configure(
    context: click.Context,
    /,
    everything: bool,
    days: int | None,
    quorum: int | None,
    reasoned: bool | None,
    lock: timedelta | None,
    **given: tuple[Any, ...],
) -> None:
    """Set what `forget` keeps when it is given no rules, how long it waits, how many have to agree, and whether a
    restore needs a reason.

    Without options it shows what is set. Rules that are given take the place of all that were: the first that fits a
    snapshot holds, and what none fits is kept. What is not given stays as it is.

    \b
    configure --dataset pmr --keep-within 30d --keep-daily 60 --dataset '*' --keep-last 14
    """
    settings: Settings = context.obj
    rules = _rules([str(option.name) for option in context.meta[ORDER]], given)
    if everything and rules:
        raise click.UsageError("--keep-all means no rules: leave one of them out.")
    keep = rules if rules or everything else None
    delay = None if days is None else timedelta(days=min(days, timedelta.max.days))
    output = settings.output
    with settings.open() as repository:
        if keep is None and {delay, quorum, reasoned, lock} == {None}:
            _show(output, repository.rules())
            return
        repository.configure(keep=keep, forget_delay=delay, forget_quorum=quorum, reason_required=reasoned, lock=lock)
    if not output.people:
        facts = {
            "keep": None if keep is None else list(keep),
            "forget_delay": None if delay is None else delay.total_seconds(),
        }
        output.result(
            facts
            | {
                "forget_quorum": quorum,
                "reason_required": reasoned,
                "lock": None if lock is None else lock.total_seconds(),
            }
        )
    elif not output.quiet:
        output.line(_told(keep, days, quorum, reasoned, lock))


def _show(output: Output, rules: Rules) -> None:
    if not output.people:
        output.result(rules.to_dict())
        return
    if rules.keep:
        output.table([("Dataset", False), ("Kept", False)], [[of, str(keep)] for of, keep in rules.keep.items()])
    else:
        output.line("No rules: everything is kept.")
    output.line(
        f"What is forgotten can be called back for {spelled(rules.forget_delay)}; {_agreed(rules.forget_quorum)}."
    )
    if rules.reason_required:
        output.line(f"{_asked(reasoned=True).capitalize()}.")
    if rules.lock:
        output.line(f"{_locks(rules.lock).capitalize()}.")


def _agreed(quorum: int) -> str:
    return "one person can forget" if quorum == 1 else f"{quorum} people have to agree to forget"


def _asked(*, reasoned: bool) -> str:
    return "who restores has to say why" if reasoned else "nobody has to say why he restores"


def _locks(lock: timedelta) -> str:
    if not lock:
        return "no more locks are set"
    return f"nobody can delete what is stored for {spelled(lock)}, in places that can lock it"


def _rules(order: list[str], given: dict[str, tuple[Any, ...]]) -> dict[str, pb.Keep]:
    """Rules as they were given, one after another. UsageError."""
    values = {name: iter(items) for name, items in given.items()}
    groups: list[tuple[list[str], dict[str, Any]]] = []
    for name in order:
        if name not in values:
            continue
        value = next(values[name])
        if name == "datasets":
            if not groups or groups[-1][1]:
                groups.append(([], {}))
            groups[-1][0].append(value)
            continue
        if not groups:
            groups.append((["*"], {}))
        if name in groups[-1][1]:
            raise click.UsageError(f"--keep-{name} is there twice in one rule: --dataset begins another.")
        groups[-1][1][name] = value
    found: dict[str, pb.Keep] = {}
    for datasets, counts in groups:
        for dataset in datasets:
            if not counts:
                raise click.UsageError(f"Say how much to keep of {dataset}: --keep-daily 7 and so on, after it.")
            if dataset in found:
                raise click.UsageError(f"There are two rules for {dataset}.")
            found[dataset] = pb.Keep(**counts)
    return found


def _told(
    keep: dict[str, pb.Keep] | None,
    days: int | None,
    quorum: int | None,
    reasoned: bool | None,
    lock: timedelta | None,
) -> str:
    told = []
    if keep is not None:
        told.append(f"{counted(len(keep), 'rule')} for what is kept" if keep else "no rules: everything is kept")
    if days is not None:
        told.append(f"what is forgotten can be called back for {counted(days, 'day')}")
    if quorum is not None:
        told.append(_agreed(quorum))
    if reasoned is not None:
        told.append(_asked(reasoned=reasoned))
    if lock is not None:
        told.append(_locks(lock))
    return f"Set: {'; '.join(told)}."
