"""Which nodes are slow: by their share of the median."""

import statistics

from slurm.preflight_meeting import Finding


def slow_nodes(rates: dict[str, float], share: float, what: str, remedy: str) -> list[Finding]:
    """Returns the nodes whose rate is less than `share` of the median of all; of fewer than three none can be told.

    Args:
        rates: node -> a rate, higher is better.
        share: least part of the median.
        what: the rate's unit and meaning.
        remedy: what to do about it.
    """
    if len(rates) < 3:
        return []
    usual = statistics.median(rates.values())
    return [
        Finding(
            node,
            f"{rate:,.3g} {what}, the median is {usual:,.3g} and {share:.0%} of it are expected",
            remedy,
            is_rate=True,
        )
        for node, rate in rates.items()
        if rate < share * usual
    ]
