"""The number of what the carried maps keep. A version refuses to follow one with a larger number. Pure."""

from __future__ import annotations

from nodenet.errors import CannotRunError

# Increase it when a version with the number before could not read what this one keeps: after a downgrade it would lose
# connections. tests/unit/test_state.py fails until that is done. 1 was never stored: versions before decision 0041.
STATE = 2
HINT = (
    "install that version again, or accept the loss: allow_downgrade: true in the agent's configuration "
    "(nodenet upgrade --set config.allow_downgrade=true); docs/operations.md#going-back"
)


def require_readable(found: int, where: str) -> None:
    """Raises CannotRunError if a version with the number `found` kept more than this one can read."""
    if found > STATE:
        raise CannotRunError(
            f"{where}: a later version kept connections in a form that this one cannot read (state {found}, "
            f"expected at most {STATE}): going back would cut them off",
            HINT,
        )
