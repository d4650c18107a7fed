"""Every sentence a person reads on the page. Help texts of settings are the settings' own docstrings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from trainers.config import describe

TITLE = "lrdiff"
TAGLINE = "Teach a diffusion model your subject. Everything stays on this machine."

TAB_TRAIN, TAB_RUNS, TAB_GENERATE, TAB_VERIFY, TAB_MODELS = "Train", "Runs", "Generate", "Verify", "Models"
TAB_HEADS, TAB_ATTENTION, TAB_REWARDS = "3D", "Attention", "Rewards"

# Train
IMAGES_TITLE = "Images"
IMAGES_ABOUT = (
    "Five to twenty pictures of one subject, in different places and light. They are copied, never changed. "
    "A text file of the same name is the caption of its picture."
)
DROP = "Pictures"
EXAMPLE = "Or an example subject"
EXAMPLE_NONE = "My own pictures"
NO_EXAMPLES = "No example subjects are installed (they would be in `assets/subjects`)."
PROMPT_TITLE = "Words"
PROMPT_ABOUT = "To follow a reward instead of pictures, go to the Rewards page."
LENGTH_TITLE = "Length"
RUN_NAME = "Name of the run"
RUN_NAME_INFO = "Optional. Left empty, the prompt names it."
PRESET = "How thorough"
PRESET_INFO = (
    "Fills in the settings below; every one can still be changed. A short test run tells if the pictures work."
)
PRESET_CUSTOM = "Own settings"
PRESETS = {"quick": "Quick", "standard": "Standard", "thorough": "Thorough"}
PRESET_STEPS = "{name} · {steps} steps"
ADVANCED = "Advanced: all other settings"
START = "Start training"
ONE_IMAGE = "One picture is allowed, but the subject will be copied together with its background and pose."
NO_IMAGES = "Add pictures first, or choose an example subject."
READY = "{count} ready"
PICTURES = ("no pictures yet", "1 picture", "{count} pictures")
REFUSED = ("1 cannot be used", "{count} cannot be used")
WITH_CAPTION = "with caption"
MORE_PICTURES = "and {count} more"
FIX_PICTURES = "Remove or replace these files first: {names}."
WRONG_TYPE = "not a picture; known types: {types}"
LONELY_CAPTION = "a caption without a picture of the same name"
SAME_CAPTION = "a second caption for the same picture"
TOO_MANY_FILES = "{count} files; at most {limit} at once"
EXAMPLE_PROMPT = "a photo of sks {noun}"
EXAMPLE_LABEL = "{name} ({noun}, {count})"
NOT_FROM_PICTURES = "{method} does not learn from uploaded pictures; use lrdiff train {method}"
NOT_PRINTABLE = "A name holds control characters; take them out"
NO_TABLE = "Must be a table of settings"
NO_SUCH_ADAPTER = "{name} is neither a run nor an imported adapter here; /adapters lists them"
NO_SUCH_DECODER = "{name} is not installed as a marked decoder here"
NOT_UPLOADED = "{name}: was not uploaded; send the file itself, for example with gradio_client.handle_file"
UPLOAD_GONE = "the upload is no longer on the server; add the file again"
QUEUED = "{name} is in the queue."
PROBLEMS = "Not started. Please look at:"
NOT_CHECKED = "Not checked. Please look at:"

METHOD = "Method"
PHOTOS = "photos"
METHOD_HINTS = {
    "sla": "The Attention page shows which blocks matter, and sets sizes that suit the model.",
    "my3dgen": "About ten photos of one person from different sides, head in the middle. The 3D page shows the result.",
}
CAPTIONS = "Captions: what each picture shows"
CAPTIONS_INFO = "Click a caption to change it. An empty one is the prompt."
CAPTION_COLUMNS = ("Picture", "Caption")
FROM_PHONE = "a HEIC picture from a phone, which cannot be read here; send it as JPEG, or convert it to PNG or JPEG"
CHECK = "Check first"
CHECKING = "Checking: loads the model, reads the pictures and takes two steps"
CHECK_BUSY = "The device is in use by {name}; the check would slow it down. Start puts the run into the queue."
CHECK_FAILED = "The check ended without an answer (exit code {code}): {lines}"
ANOTHER_CHECK = "another check"
ESTIMATE = "About {time} on this machine: {step} per step, measured, previews included."
ESTIMATE_MEMORY = "Memory {memory}, {free} are free."
ESTIMATE_MEMORY_LOW = "Memory {memory}, but only {free} are free: close something first."
ESTIMATE_DISK = "Disk: up to {disk}, {free} are free."
ESTIMATE_NONE = "Time and memory with these settings are not known yet; Check first measures them."
CHECKED = "Checked. Nothing stands against starting."
PRESET_TIME = "{name} · {steps} steps · {time}"
LED = (
    "<b>New here?</b> Press <b>Start training</b>: it teaches the model the example below. "
    "Then <b>Generate with it</b> draws that in new places."
)

# Runs
RUNS = "Runs"
STEPS = ("", "1 step", "{count} steps")
NO_RUNS = "No runs yet. Start one on the Train page."
STOP = "Stop and save"
STOP_ASKED = "{name} finishes its step, saves, and ends."
DOWNLOAD = "Download adapter"
USE = "Generate with it"
RESUME = "Resume"
REPEAT = "Repeat with changes"
REPEATED = "The Train page now holds the pictures and settings of {name}. Change what you like, then press Start."
NOT_REPEATABLE = "this page does not train {method}; repeat it with: lrdiff train {method} --config {path}/run.json"
REPORT = "Open report"
DELETE = "Delete"
DELETE_ASK = "Move {name} to the trash? It can be put back from there."
DELETE_YES, DELETE_NO = "Move to trash", "Keep it"
DELETED = "{name} is in the trash."
TRASH, TRASHED = "Trash", "Deleted runs"
TRASH_EMPTY = "The trash is empty."
RESTORE, RESTORED = "Put back", "{name} is back."
PURGE = "Delete for good"
PURGE_ASK = "Delete this run for good? Its adapter, checkpoints and pictures are then gone."
PURGE_YES = "Delete for good"
COMPARE, COMPARE_RUNS = "Compare runs", "Runs"
COMPARE_INFO = "Two to {count}."
COMPARE_TWO = "Choose at least two runs."
COMPARE_SAME = "The settings of these runs do not differ."
STATE = "state"
METRICS, METRIC = "Other figures", "Figure"
NO_PREVIEWS = "No previews yet."
CHART = "Loss"
CHART_STEP, CHART_LOSS = "step", "loss"
SERIES = {"loss": "training", "loss_fixed": "fixed noise", "loss_validation": "validation"}
PREVIEWS = "Previews over time"
PREVIEW_CAPTION = "step {step}"
LOG = "Log"
SETTINGS = "Settings, and what was found before the first step"
STATES = {
    "queued": "Waiting",
    "running": "Running",
    "finished": "Finished",
    "failed": "Failed",
    "stopped": "Stopped",
    "interrupted": "Interrupted",
}
STEP_OF = "step {step} of {total}"
PREPARING = "Starting: loading the model and encoding the pictures"
WAITING = "Waits for its turn, {position}"
WAITING_NEXT = "next in the queue"
WAITING_BEHIND = "{count} before it"
STOPPING = "Stopping: finishes its step and saves"
LEFT = "about {time} left"
SPEED = "{seconds} per step"
TOOK = "took {time}"
EXIT_CODE = "Exit code {code}"
LAST_LINES = "Last lines of the log"
WEIGHT_FILE = "Adapter of {size}, {parameters} parameters"

# What became of a run
NO_SUCH_RUN = "there is no run {name!r}; reload the page to see the present list"
ALREADY_ENDED = "{name} has ended already ({state}), so there is nothing to stop"
CANNOT_WRITE = "{path}: cannot be written ({reason}); free some space or start the app in another folder"
CANNOT_START = "the trainer could not be started ({reason})"
BAD_NAME = "{name!r} is no plain file name; rename the file"
STOPPED_BEFORE = "stopped before it started"
GONE = (
    "the process is gone without a word; the app was restarted meanwhile, so its exit code is not known. "
    "Checkpoints are kept"
)
KILLED = "the process was ended from outside by {signal}; checkpoints are kept"
KILLED_9 = "the process was ended from outside by {signal}, often because memory ran out; checkpoints are kept"
EXITED = "the process ended with exit code {code} before the run was done; the log says why"
EXITED_LATE = "the process ended with exit code {code} after the last step, so the result is not trusted"
NO_ARTIFACT = "the run says finished, but there is no adapter file"
NO_REPORT = "this run has no report yet; it is written when the run ends"
OTHER_ARTIFACT = "the run says finished, but the adapter file is not the one that was written"

# Generate
BASE_ONLY = "None (base model alone)"
ADAPTER = "Adapter"
ADAPTER_INFO = "Trained runs and imported files that were made for this base model."
WEIGHT = "Adapter weight"
WEIGHT_INFO = "0 is the base model, 1 the adapter as trained, more exaggerates it."
STEP_RANGE = "Only in a part of the steps"
STEP_RANGE_INFO = "0 is the first sampling step, 1 the last. Early steps decide the layout, late ones the details."
STEP_BEGIN, STEP_END = "Acts from", "Acts until"
MIX = "Mix: from the first adapter to the second"
MIX_INFO = "Sets both weights: at 0 only the first acts, at 1 only the second, in between both."
MORE_SETTINGS = "More settings"
PROMPTS_INFO = "What to draw; one prompt per line."
NEW_SEED = "New seed"
REUSE = "Reuse settings from a PNG"
REUSED = "Settings taken from {name}."
REUSED_BUT = "Settings taken from {name}, except the adapter: {problem}."
ADAPTER_ALSO = "And another adapter"
NO_MORE = "None"
PREVIEW_OF = "Preview of {name}"
STEPS_DONE = "{steps} steps"
DECODER_ABSENT = "the marked decoder {name} is not installed"
MARK = "Watermark"
MARK_INFO = "A marked decoder puts the bits of its key into every image; the Verify page finds them."
MARK_OFF, MARK_ON = "Off", "On: key {key} ({model})"
GLIMPSE = "The image under way"
AXES = "Grid over two settings"
AXES_INFO = "Draws one image for every pair of values, and all of them on one labelled sheet."
AXIS_NONE, AXIS_ACROSS, AXIS_DOWN, AXIS_VALUES = "None", "Across", "Down", "Values, one per line"
NO_AXIS = "{name!r} cannot be an axis of a grid"
AXIS_EMPTY = "Grid: give values for {name}"
AXIS_TWICE = "Grid: {name} lists a value twice"
AXES_SAME = "Grid: choose two different settings"
ONE_PER_CELL = "A grid draws one image per cell: give one value here, or put it on an axis"
TOO_MANY_IMAGES = "{count} images are asked for in all; at most {limit} at once"
TOO_LARGE_SETTING = "At most {limit} here"
ADAPTER_ABSENT = "no run here holds {names}"
SHARE = "Do not wait for a running training"
SHARE_INFO = "Both then share the processor or GPU: both become slower, and memory may not suffice."
GENERATE = "Generate"
CANCEL = "Cancel"
RESULTS = "Images"
RESULTS_EMPTY = "Images appear here."
VERIFY_IT = "Verify the image"
NO_IMAGE_YET = "There is no image yet; press Generate first."
RESULT_FACTS = "{count} in {time}, written to {folder}"
MADE = ("no images", "1 image", "{count} images")
WAITS_FOR_RUN = "Waits for the training of {name}"
WAITS = "Waits until the device is free"
LOADING = "Loading the model"
DRAWING = "Image {first} to {last} of {images}, step {step} of {steps}"
DRAWING_ONE = "Image {first} of {images}, step {step} of {steps}"
CANCELLED = "Cancelled after {made}."
NOT_GENERATED = "Nothing generated. Please look at:"
FAILED_UNEXPECTEDLY = "This should not have happened: {error}. The log of the server holds the details."

# The server
PORT_TAKEN = "--port {port}: in use by another program, or not allowed; choose another, or 0 for any free one"
NO_ANSWER = (
    "--host {host}: the page listens there, but this machine cannot reach it ({error}). A firewall may stand between, "
    "or the name may belong to another machine"
)
LISTENING = "The page is at {url} (Ctrl-C closes it; runs that are under way go on)"
CLOSING = "Page closed. Runs that are under way go on; the page finds them again."

# Forms
EMPTY_NUMBER = "Give a number"
NOT_A_NUMBER = "{word!r} is no number"

LABELS = {
    "model": "Base model",
    "seed": "Seed",
    "data.prompt": "Prompt",
    "data.validation": "Validation images",
    "data.batch_size": "Batch size",
    "data.flip": "Mirror images",
    "method.targets": "Layers",
    "method.min_snr": "Min-SNR gamma",
    "method.transform_rank": "Rank of the transform",
    "method.residual": "Form of the residual",
    "method.r": "Rank of the residual",
    "method.alpha": "Scale (alpha)",
    "method.transform_lr": "Learning rate of the transform, factor",
    "method.mix": "Share of the linear branch, at the start",
    "method.projection_lr": "Learning rate of the projections, factor",
    "method.init": "Start of the transform",
    "optim.steps": "Steps",
    "optim.lr": "Learning rate",
    "optim.schedule": "Learning rate schedule",
    "optim.warmup": "Warm-up steps",
    "optim.weight_decay": "Weight decay",
    "optim.beta1": "AdamW beta 1",
    "optim.beta2": "AdamW beta 2",
    "optim.clip": "Gradient clipping",
    "optim.accumulate": "Gradient accumulation",
    "precision.device": "Device",
    "precision.dtype": "Number format",
    "dtype": "Number format",
    "prompt": "Prompt",
    "scale": "Factors on the weight",
    "decoder": "Watermark",
    "count": "Images per prompt",
    "guidance": "Guidance",
    "grid": "Contact sheet",
    "topk": "Share of critical blocks",
    "skip": "Share of negligible blocks",
    "block_q": "Tokens in a query block",
    "block_k": "Tokens in a key block",
    "method.anchor_lr": "Learning rate of the anchors",
    "method.arcface": "ArcFace weights",
    "method.lpips": "LPIPS weights",
    "method.topk": "Share of critical blocks",
    "method.skip": "Share of negligible blocks",
    "method.block_q": "Tokens in a query block",
    "method.block_k": "Tokens in a key block",
    "method.k": "Steps with gradient (k)",
    "method.mode": "Way of the gradient",
    "method.held_out_count": "Held-out prompts measured",
    "method.min_diversity": "Least diversity",
    "method.max_drop": "Largest fall of the monitor",
    "at": "When to look",
    "size": "Picture side",
}

GROUPS = {
    "data.": "Images",
    "method.": "Method",
    "optim.": "Optimisation",
    "precision.": "Device",
    "watch.": "While training",
    "": "Run",
}


class _Field(Protocol):
    @property
    def path(self) -> str: ...

    @property
    def help(self) -> str: ...


def label(path: str) -> str:
    """Return the label of a setting: the one given here, or its name in words."""
    name = path.rpartition(".")[2].replace("_", " ")
    return LABELS.get(path, name[:1].upper() + name[1:])


def help(field: _Field) -> str:
    """Return a setting's help text."""
    return " ".join(field.help.split()).replace("`", "")


def help_with_flag(field: _Field) -> str:
    """Return a setting's help text with the name that it has on the command line."""
    return f"{help(field)} `--{field.path.replace('_', '-')}`".strip()


def problem(error: Mapping[str, Any]) -> str:
    """Return one pydantic error as a sentence for its field."""
    message = describe(error)
    # A problem of several fields together begins with the name of one of them.
    is_of_one = error["loc"] and not isinstance(error["input"], dict)
    return message[:1].upper() + message[1:] if is_of_one else message


def plural(forms: tuple[str, ...], count: int) -> str:
    """Return the form for a count: the forms for (0,) 1 and many."""
    if len(forms) == 2:
        forms = ("", *forms)
    return forms[min(count, 2)].format(count=count)


def duration(seconds: float) -> str:
    """Return a length of time for people: 8 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 and whole % 60 else f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: int) -> str:
    """Return a file size for people."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"
