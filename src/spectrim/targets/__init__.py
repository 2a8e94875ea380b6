"""Runtimes: how long a network takes on them."""
