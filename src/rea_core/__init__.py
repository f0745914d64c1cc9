"""Ground floor: what the other packages share. It imports none of them, and no torch."""
