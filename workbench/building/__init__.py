"""Engines built ahead, here or for a GPU elsewhere: targets, the store, and what is done to it."""
