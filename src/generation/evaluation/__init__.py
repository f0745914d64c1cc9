"""Benchmarks, tables and pictures of scored models."""
