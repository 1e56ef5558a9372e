"""Checks of what else a training file holds."""

from __future__ import annotations

import re
from collections.abc import Iterator

from merge.checkpoint.open import Checkpoint
from merge.plan.findings.facts import Facts
from merge.plan.findings.kinds import Seen, listed

# Entries that belong to the run that wrote them, and not to a merge of two.
STATE = re.compile(
    r"(\w*_)?(optimi[sz]ers?|optim|lr_scheduler\w*|scheduler\w*|scaler|loss_scaler|amp|grad_scaler)(_\w+)?"
)


def training_state(facts: Facts) -> Iterator[Seen]:
    """Second sets of weights and states of optimisers, which a merge of one section does not touch."""
    for label, item in zip(facts.labels, facts.inputs, strict=False):
        if isinstance(item, Checkpoint):
            others = [name for name in item.sections if name != item.section]
            others += [name for name in item.content.others if STATE.fullmatch(name)]
            if others:
                text = (
                    f"{label} also holds {listed(list(dict.fromkeys(others)))}: of other weights than the merged ones"
                )
                yield Seen(text, "merge another set of weights with section='PATH', and train on with a new optimiser")
                return
