"""Sentences of the Attention page: which blocks matter, a fine-tune that leaves out the rest, and what it costs."""

from __future__ import annotations

LEAD = (
    "<b>Attention is what takes the time in large pictures and videos.</b> Sparse-linear attention keeps it for the "
    "blocks that matter and does the rest cheaply. First look at a layer, then fine-tune, then compare."
)
LOOK_TITLE = "1. Which blocks matter"
LOOK_ABOUT = "Draws the prompt with full attention up to one step, and asks there what would be kept and what left out."
START_SIZES = (
    "Blocks begin at the smallest size here: a layer of toys-dit has 1,024 tokens, 64 such blocks; one of toys at most "
    "64 tokens, four blocks."
)
LAYER_LONGEST = "The first of the longest"
LAYER_INFO = "All layers are listed once a map was drawn."
LAYER_CHOICE = "{name} ({tokens})"
DRAW = "Draw the map"
MAP = "Block map"
MAP_EMPTY = "The map appears here."
LOADING = "Loads the model and draws up to the step"
NOT_DRAWN = "No map. Please look at:"

TOKENS = ("no tokens", "1 token", "{count:,} tokens")
LAYERS = ("no layers", "1 layer", "{count} layers")
HEADS = ("no heads", "1 head", "{count} heads")
MODEL = "{model} has {layers} of self-attention that can be made sparse; at its own size of {side} px: {tokens}."
LAYERS_OF = "{layers} of {tokens}"
TOO_SHORT = (
    "1 layer is too short to be sparse with these settings and stays as it is.",
    "{count} layers are too short to be sparse with these settings and stay as they are.",
)
LAYER = "Layer {layer}: {tokens} in {rows} by {columns} blocks, {heads}."
TEXT = "{tokens} of text behind them are never sparse."
SHARES = "Critical {critical:.1%}, marginal {marginal:.1%}, negligible {negligible:.1%}."
NOTHING_SPARSE = (
    "Nothing is sparse in this layer: one block of {block_k} keys is all there is, or all that was asked for. Take "
    "smaller blocks, a smaller share of critical blocks, or a larger picture."
)
SCOPES = {
    "marginal": "Linear attention sees the marginal blocks; negligible ones are skipped.",
    "noncritical": "Linear attention sees all blocks that are not critical; none is skipped.",
    "all": "Linear attention sees every block, the critical ones too; none is skipped.",
}
KINDS = {
    "critical": "softmax attention, token by token",
    "marginal": "linear attention, in summary",
    "negligible": "skipped",
}
HEAD = "Head {number}"
HEAD_ALT = "Block map of head {number}: {rows} rows of queries by {columns} columns of keys."
AXES = "Rows are blocks of queries, columns blocks of keys, both in the order of the tokens."

TRAIN_TITLE = "2. Fine-tune"
TRAIN_ABOUT = (
    "A model has to learn to live with fewer blocks. It learns from pictures: those of the Train page, with its words "
    "and its length, and with the base model and the blocks from above."
)
START = "Start the fine-tune"
LOOK_FIRST = "See all settings first"
HANDED = "The Train page now holds method sla with these blocks. Press Start training there."
MAP_FIRST = "Draw the map of {model} first: it tells how long the layers are, and so whether anything would be sparse."
WOULD_NOT = (
    "Nothing would be sparse: the layers of {model} have at most {tokens} at its own size, which is too few for these "
    "settings. Take smaller blocks or another share of critical blocks; 16 is the smallest block."
)
NOT_STARTED = "Not started. Please look at:"

COMPARE_TITLE = "3. Compare"
COMPARE_ABOUT = (
    "The same prompt and seed twice, one after the other: full attention, then the fine-tune. Times are those of the "
    "sampling steps alone."
)
ADAPTER = "Fine-tune"
ADAPTER_INFO = "Runs of sla on this base model that ended with a result."
NO_ADAPTER = "None yet for this base model"
CHOOSE = "Choose a fine-tune first; step 2 makes one."
COMPARE = "Draw both"
CANCEL = "Cancel"
FULL, SPARSE = "Full attention", "Sparse-linear attention"
SLIDER = "Left: full attention. Right: sparse-linear attention."
DIVIDE = "Where the pictures meet"
DIVIDE_INFO = "0 shows the fine-tune alone, 100 full attention alone. The line in the picture can be dragged too."
BOTH_EMPTY = "Both pictures appear here."
TIMES = "Full attention {full:.2f} s per image, sparse-linear attention {sparse:.2f} s: {verdict}."
FASTER = "{factor:.2f} times faster"
SLOWER = "{factor:.2f} times slower"
SAME = "no difference worth the name"
WORTH = 0.03
"""Share of the time below which a difference is noise."""
TWO_STEPS = "Times are taken from the second sampling step on: give at least 2 steps."
NOT_COMPARED = "Not drawn. Please look at:"
CROSSOVER = 512, 1024
"""Tokens between which it overtakes full attention on a processor at 95 % sparsity: results/sla_attention_cpu.json."""
SHORT = (
    "On a processor it overtakes full attention only somewhere between {low:,} and {high:,} tokens in a layer. Below "
    "that, choosing the blocks costs more than they save, so it may well be slower here."
)
