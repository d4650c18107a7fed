"""Procedural scenes with exact ground truth: the data the shipped models are made from."""
