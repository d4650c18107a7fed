"""Turns the library into runs: configuration, the training loop, run directories, one Method per trainer."""
