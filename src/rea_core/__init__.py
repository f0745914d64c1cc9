"""Ground floor: what the other packages share. It imports none of them, and no torch."""

from rea_core import interruption

interruption.watch_imports()
