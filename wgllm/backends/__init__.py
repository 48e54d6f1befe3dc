"""Executors: what runs graphs. ``numpy`` defines what is right; every other one is compared with it."""
