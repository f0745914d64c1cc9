"""Offline generation, labelling of thinking paragraphs, answer verification; prompts and
splitters of training."""

from rea_core import moved

moved.install()
