"""Customize diffusion models with low-rank methods: train, generate, verify.

The library half of the project: maths, modules, adapters and base models. It knows no command line and sets up no
logging. `trainers` turns it into runs, `app` into a command line and a web page.
"""

__version__ = "0.1.0"
