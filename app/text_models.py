"""Sentences of the Models page."""

from __future__ import annotations

BASES = "Models that come with lrdiff"
BASES_ABOUT = (
    "As a base model any other folder in diffusers' layout can be used by its path. Nothing is ever downloaded."
)
BASE_COLUMNS = ("Name", "What it is for", "Size", "Folder")
PURPOSES = {
    "toys": "Base model: draws a small world of toys from words",
    "toys-dit": "Base model: the same world, drawn by a transformer",
    "heads": "3D: heads from all sides",
    "extractor": "Verify: reads marks in pictures",
    "probe-a": "Rewards: tells shapes, colours and subjects apart",
    "probe-b": "Measures results; never trained against",
    "heads-probe-a": "3D: tells people apart, also in what is learned",
    "heads-probe-b": "3D: measures results; never trained against",
}
NO_BASES = "No models are installed."
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
