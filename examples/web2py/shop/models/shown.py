"""What each page tells of itself: which node served it, and how far the user's last writes have come."""

#: Writes that a page shows.
SHOWN = 5

reads = []
_made = []


def served(*infos):
    """Show on this page which nodes served it."""
    nodes = {info.node for info in reads}
    reads.extend(info for info in infos if info.node not in nodes)


def follow(what, receipt):
    """Show on the user's next pages how far this write has come; a receipt is printed once it has been sent."""
    if receipt is not None:  # a form in which nothing was changed has none
        _made.append((what, receipt))
    return receipt


def _note_sent(adapter, commit=response.custom_commit):
    commit(adapter)
    sent = [dict(what=what, receipt=str(receipt)) for what, receipt in _made if receipt.position is not None]
    if adapter is None and sent:
        session.writes = (sent[::-1] + (session.writes or []))[:SHOWN]


response.custom_commit = _note_sent
