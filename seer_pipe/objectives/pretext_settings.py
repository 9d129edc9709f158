"""What objectives that guess a label of the views' geometry show: no torch at import."""

from __future__ import annotations

from seer_pipe.objectives.settings import Panel, Sign

PRETEXT_PANELS = (
    Panel("Labels guessed", "How often the label that the views give is guessed; near all: look for a shortcut.",
          {"pretext_accuracy": "guessed"}, percent=True),
)  # fmt: skip


def shortcut_sign(above: float, advice: str) -> Sign:
    """Of a task that nobody guesses more often than ``above`` by what is in the picture alone."""
    return Sign(
        ("pretext_accuracy",),
        lambda values: values["pretext_accuracy"] > above,
        "{pretext_accuracy:.1%} of the labels are guessed, where the content of pictures allows less",
        f"there may be a shortcut: {advice}",
    )
