"""The study: all rows trained, evaluated and reported."""

from rea_core import moved

__getattr__ = moved.names_of(__name__)
