"""Sentences of the Rewards page: what shall score high, and how a run comes along."""

from __future__ import annotations

LEAD = (
    "No pictures are needed here. The model draws its own from the prompts below, and learns to draw what scores "
    "higher. Watch the pictures too: a score can rise beyond what it stands for."
)

# What is asked for
REWARDS_TITLE = "Rewards"
REWARDS_ABOUT = "What shall score high. Several are added up, each times its weight."
REWARD, ALSO = "Reward", "And another reward"
NONE = "None"
WEIGHT = "Weight"
WEIGHT_INFO = "Below 0 asks for less of it."
ARGUMENT = "Which"
MEANINGS = "What each reward means"
REWARDS = {
    "brightness": ("Brightness", "Light pictures score high, dark ones low."),
    "colourfulness": ("Colourfulness", "Strong and varied colours score high, greys low."),
    "compressibility": ("Compressibility", "Plain pictures, which make small JPEG files, score high."),
    "contrast": ("Contrast", "Pictures with both dark and light parts score high."),
    "incompressibility": (
        "Incompressibility",
        "Busy pictures full of detail, which make large JPEG files, score high.",
    ),
    "sharpness": ("Sharpness", "Crisp edges and fine detail score high, soft pictures low."),
    "symmetry": ("Symmetry", "Pictures that look the same in a mirror score high."),
    "likeness": ("Likeness to a picture", "The more alike every pixel is to a picture of yours, the higher."),
    "palette": ("Palette", "Pictures that keep to the colours you name score high."),
    "prompt-match": (
        "Prompt match",
        "Pictures in which a small network reads what the prompt names score high; for captions of the toy world.",
    ),
    "ratings": ("Your ratings", "Pictures like those you rated well score high; needs a file made from your ratings."),
    "clip": ("CLIP", "Pictures that fit their prompt in the eyes of a CLIP model of yours score high."),
    "pickscore": ("PickScore", "Pictures that people would pick score high; needs PickScore's model on this machine."),
    "hps": ("HPS", "Pictures that people would prefer score high; needs HPSv2's model on this machine."),
    "aesthetic": ("Aesthetic", "Pictures that people find beautiful score high; needs CLIP and LAION's predictor."),
}
"""Label and one plain sentence by name."""
ARGUMENTS = {
    "likeness": "Path of the picture on this machine.",
    "palette": "Colours as #rrggbb, with commas between.",
    "prompt-match": "The network that reads: probe-a, or probe-b.",
    "ratings": "Path of the file that python -m trainers.alignprop.rate wrote.",
    "clip": "Folder of the CLIP model.",
    "pickscore": "Folder of PickScore's CLIP model.",
    "hps": "Folder of HPSv2's CLIP model, in transformers' layout.",
    "aesthetic": "Folder of CLIP ViT-L/14 and the predictor's file, with a comma between.",
}
"""What stands in the field beside a reward that needs more than its name."""
TOO_MANY = (
    "this page holds {slots} rewards, and {name} has {count}; repeat it with: lrdiff train alignprop --config {path}"
)

PROMPTS_TITLE = "Prompts"
PROMPTS = "Prompts to learn on"
PROMPTS_INFO = "One on each line. The run draws them again and again."
HELD_OUT = "Prompts only to measure on"
HELD_OUT_INFO = "Never trained on, so they tell whether the reward rises elsewhere too. The first two are shown below."
NO_PROMPTS = "Give at least one prompt"
PRESET_INFO = (
    "Fills in the settings below; every one can still be changed. Quick shows whether the reward moves at all."
)
RANK = "Rank"
RUN_NAME_INFO = "Optional. Left empty, the rewards name it."
START = "Start training"

REPEATED = "The Rewards page now holds the settings of {name}. Change what you like, then press Start training."

# What comes of it
RUN_TITLE = "Result"
RUN = "Run"
RUN_INFO = "Runs towards rewards, newest first."
NO_RUN = "No run yet"
EMPTY = "Curves and pictures of a run appear here."
CURVES = {
    "reward": ("Reward", "Of the pictures that are trained on."),
    "held_out": ("Held-out reward", "On prompts that nothing is trained on."),
    "diversity": ("Diversity", "How much pictures of one prompt differ; falling means they become alike."),
    "grad_norm": ("Gradient norm", "How hard a step pulls; it should stay finite and calm."),
}
BEFORE_AFTER = "Before and after"
BEFORE, AFTER = "Before", "After step {step}"
STRENGTH = "Strength"
STRENGTH_INFO = "0 is the base model, 1 the adapter as trained."
