"""Rollouts: sample, label, cut, finish and verify responses on vLLM servers."""

from rea_core import moved

__getattr__ = moved.names_of(__name__)
