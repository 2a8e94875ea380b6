"""Layers fitted one after the other to what the compressed layers before them give."""
