"""Synchronisation: what is read from main, and how it becomes the same thing in a child."""
