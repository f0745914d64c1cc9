"""REA-RL: reinforcement learning that shortens thinking by online revision and keeps its
reflection."""

from rea_core import moved

__version__ = "0.1.0"

moved.install()
