"""The verbs of the command line, one file each. Importing one imports neither torch nor tyro."""
