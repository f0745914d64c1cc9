"""Offline generation, labelling of thinking paragraphs, answer verification; prompts and
splitters of training."""
