"""Every sentence about runs, their queue, their trash and their adapters, on the page and in the terminal."""

from __future__ import annotations

# The folder of runs
A_LINK = "{path}: is a link, which is not followed; put the run itself into the folder"
UNREADABLE_FOLDER = "{path}: cannot be looked into ({reason}); look at the folder's rights"
BUSY = "{path}: another process has been changing the queue for {seconds:.0f} s; try again, or end that process"
CANNOT_CHANGE = "{path}: cannot be written ({reason}); free some space or look at the folder's rights"

# The worker
TRIES_AGAIN = "the queue could not do its work and tries again: {error}"
CANNOT_SETTLE = "{name}: its end could not be written down, which is tried again: {error}"
LITTLE_SPACE = "{path}: only {free} free, so waiting runs are not started; free some space"
WAITS_FOR_FOREIGN = "waiting runs start when {names} has ended, which was started from elsewhere"

# The terminal
WAITS_TURN = "waits until {what} is done in {root}; Ctrl-C gives up, --share does not wait"
SOMETHING = "what computes there"

# What a person asks for
IS_WAITING = "{name} waits in the queue already"
IS_RUNNING = "{name} is running"
HAS_FINISHED = "{name} has finished; to train longer, repeat it with more steps"
NO_CHECKPOINT = "{name} has no checkpoint to go on from; repeat it instead"
NOT_RUNNING = "{name} is not running, so there is nothing to end"
NO_PROCESS = "{name} is carried out by a process that is not known here; end it where it was started"
STILL_THERE = "{name}: process {pid} did not end within {seconds:.0f} s; look at it with ps"
KILLED_ON_REQUEST = "ended at once on request, without saving; checkpoints are kept"
CANNOT_REPEAT = "{name} cannot be repeated: {reason}"
NO_PICTURES = "its pictures in {path} cannot be read ({reason})"
UNKNOWN_SETTING = "{name}: no such setting of {method}"

# Trash
DELETE_RUNNING = "{name} is running; stop it first, then delete it"
NOT_IN_TRASH = "{identity!r} is not in the trash of {root}"
NAME_TAKEN = "{name} cannot come back: there is a run of that name now; rename or delete that one first"
CANNOT_MOVE = "{name} cannot be moved ({reason}); look at the rights of {path}"
CANNOT_REMOVE = "{path}: cannot be removed completely ({reason}); look at the folder's rights"

# Compare
COMPARE_HOW_MANY = "compare takes two to {most} runs, not {count}"
COMPARE_TWICE = "{name} is given twice"
OWN_PICTURES = "{count} ({digest})"

# Adapters
NOT_AN_ADAPTER = "{path}: is no .safetensors file; only such files are taken, since others can carry programs"
ADAPTER_TAKEN = "{path}: an adapter of this name is installed already; rename the file"
NOT_INSTALLED = "{path}: is no adapter installed in {folder}"

# Devices
BAD_DEVICE = "{name!r} is no device: give the number of a GPU as nvidia-smi shows it, its UUID, or cpu"
DEVICE_TWICE = "device {name} is given twice; each gets one worker"
