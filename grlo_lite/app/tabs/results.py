"""The Results tab: what the blind votes come to."""

from grlo_lite.app import components
from grlo_lite.app.components import Shared
from grlo_lite.app.votes import Votes, tallies
from grlo_lite.reporting.html import html_table, note

WINNERS = {"tuned": "tuned better", "base": "base better", "tie": "tie", "both bad": "both bad"}  # as the table says


def results_tab(shared: Shared) -> None:
    """Builds the tab, which counts the votes whenever it is opened."""
    found = components.html(elem_id="results")
    shared.tab.select(lambda: results_of(shared.votes), None, found, **components.AT_ONCE)


def results_of(votes: Votes) -> str:
    """The results tab as HTML."""
    cast, broken = votes.read()
    said = note(f"{broken} lines of {votes.path} are no votes and were passed over", "refused") if broken else ""
    if not cast:
        return said + note("no votes yet: ask on the Blind tab and choose a side")
    rows = []
    for tally in tallies(cast):
        rate = tally.win_rate
        shown = f"{rate.rate:.3f} [{rate.ci_low:.3f}, {rate.ci_high:.3f}]" if rate else "–"
        asked = "plain text" if tally.plain_base else "its template"
        counts = [str(tally.winners[winner]) for winner in WINNERS]
        rows.append([tally.adapter, tally.sha256[:12], asked, str(tally.winners.total()), *counts, shown])
    head = ["adapter", "weights", "base asked in", "votes", *WINNERS.values(), "tuned wins, 95 % interval"]
    explained = note("A tie and “both are bad” count as half a win; the interval is Student's t over the votes.")
    return f'{said}{html_table(head, rows)}{explained}<p><a href="votes.jsonl" download>All votes as JSONL</a></p>'
