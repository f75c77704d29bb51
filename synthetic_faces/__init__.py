"""Procedural portraits with CelebA's 40 attributes."""
