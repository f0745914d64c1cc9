"""Training step in which rows share what they have in common."""
