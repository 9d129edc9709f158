"""What is minimised: one folder or file per method behind two small interfaces, `settings` and `base`."""

from seer_pipe.objectives.swav.settings import SwavSettings

AnySettings = SwavSettings
"""The settings of every objective; a union discriminated by ``name`` as soon as there are two."""
