"""Sentences of the Models page."""

from __future__ import annotations

BASES = "Base models"
BASES_ABOUT = (
    "Shipped with lrdiff. Any folder in diffusers' layout can be used by its path; nothing is ever downloaded."
)
BASE_COLUMNS = ("Name", "Size", "Folder")
NO_BASES = "No base models are installed."
ADAPTERS = "Adapters"
ADAPTERS_ABOUT = "Results of runs, and imported files."
ADAPTER_COLUMNS = ("Name", "Method", "Base model", "Size", "From")
NO_ADAPTERS = "No adapters yet: train one, or import a file."
INSTALLED = "imported"
CHOOSE = "Adapter"
EXPORT = "Export file"
IMPORT = "Import an adapter (.safetensors made by lrdiff)"
IMPORTED = "{name} is imported. It fits {model}."
NO_SUCH = "this adapter is no longer here; open the page anew"
DECODERS = "Marked decoders"
DECODERS_ABOUT = (
    "A decoder with a watermark merged into it. This is the form to give away: a mark in a file of its own can be "
    "left out. Who exchanges the decoder, or trains it further, removes the mark; nothing prevents that."
)
DECODER_COLUMNS = ("Key", "Base model", "Size", "Folder")
NO_DECODERS = "No marked decoders yet."
MARKS = "Trained watermark"
MARKS_INFO = "Results of lrdiff train watermark."
NO_MARKS = "there is no trained watermark yet; train one: lrdiff train watermark"
FUSE = "Make a decoder"
FUSED = "The decoder with key {key} is in {path}."
