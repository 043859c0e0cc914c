"""The live table: what each service is asked for, what it has, how it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from e2e.demo.watching import Moment
from e2e.load.account import Account

Json = dict[str, Any]


def table(
    title: str, accounts: Mapping[str, Account], statuses: Mapping[str, Json], now: Moment, loop_seconds: float
) -> Table:
    """One row a service; TTFT and TPOT are the client's, over the last ten seconds."""
    shown = Table(title=title, title_justify="left", pad_edge=False)
    for column in ("service", "req/s", "tok/s", "replicas", "variant", "util", "TTFT p95", "TPOT p95", "$/Mtok", "met"):
        shown.add_column(column, justify="left" if column in ("service", "variant") else "right")
    for name, account in accounts.items():
        shown.add_row(name, *_cells(account, statuses.get(name, {}), now.replicas.get(name, (0, 0)), loop_seconds))
    held = now.held
    used = held.ready + held.starting + held.draining
    total = used + held.free_on_used_nodes + held.on_empty_nodes
    shown.caption = (
        f"{total} accelerators exist: {held.ready} serve, {held.starting} load, {held.draining} drain, "
        f"{held.free_on_used_nodes} free on used nodes, {held.on_empty_nodes} on empty or starting nodes"
    )
    return shown


def _cells(account: Account, status: Json, replicas: tuple[int, int], loop_seconds: float) -> list[str]:
    recent = account.recent(loop_seconds, 10)
    return [
        f"{recent.requests_per_second:.1f}",
        f"{recent.delivered_tokens_per_second:.0f}",
        f"{replicas[0]}/{replicas[1]}",
        status.get("variantSummary", "-"),
        _number(status.get("utilization"), "{:.2f}"),
        _number(recent.ttft_p95_s, "{:.2f} s"),
        _number(None if recent.tpot_p95_s is None else recent.tpot_p95_s * 1000, "{:.0f} ms"),
        _number(status.get("costPerMillionTokens"), "{:.2f}"),
        f"{account.attainment:.1%}",
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
