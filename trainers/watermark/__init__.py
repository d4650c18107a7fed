"""Putting a mark into a decoder: every picture it makes then carries the bits of a key."""
