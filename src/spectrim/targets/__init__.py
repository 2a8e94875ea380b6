"""Runtimes to deploy on: export a network, run it, time it, and say what it likes."""
