"""REA-RL: reinforcement learning that shortens thinking by online revision and keeps its
reflection."""

from rea_core import moved

moved.install()
