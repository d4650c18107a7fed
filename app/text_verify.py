"""Sentences of the Verify page: what a verdict means, for people who are no statisticians."""

from __future__ import annotations

TITLE = "Does this picture carry a mark?"
ABOUT = (
    "Give the file itself, as it was downloaded or received: a screenshot or a messenger's copy loses some bits. "
    "The file is read as it is and kept nowhere."
)
ABSENT = (
    "<b>Nothing can be read here yet.</b> Marks are read by a network, the extractor, and none is installed on this "
    "machine. <code>lrdiff embedded make extractor</code> makes one, in hours; this page then works without a restart."
)
NOT_JUDGED = "Not judged. Please look at:"
FILE = "Picture"
KEY = "Look for"
KEY_INFO = "With all keys, the chance of an accidental match is counted for every one of them."
ALL_KEYS = "All keys that count"
ALPHA = "Accepted false alarms"
ALPHA_INFO = "How often a picture without the mark may be called detected: 1e-6 is one in a million."
SEARCH = "Also try turned and resized"
SEARCH_INFO = "For pictures that were made smaller or put askew: 49 readings, and the chance is counted for all."
VERIFY = "Verify"
WAITING = "The answer appears here."
NO_FILE = "Choose a picture first."
NO_KEYS = (
    "There is no key to look for yet. Try it with the example mark, or make a key of your own below; a decoder is then "
    "trained to carry it."
)
BAD_ALPHA = "Give a number between 0 and 1, for example 1e-6."

ANSWERS = {"detected": "Detected", "not detected": "Not detected", "inconclusive": "Inconclusive"}
MEANING = {
    "detected": "The picture carries the bits of key {key}{owner}.",
    "not detected": (
        "This mark was not found. That does not say that the picture is genuine or made without AI: a mark can be "
        "lost, and pictures of other models never had it."
    ),
    "inconclusive": "No answer can be given: {reason}.",
}
PERHAPS = f"If it may have been made smaller, turned or put askew, tick “{SEARCH}”."
OWNER = " of {owner}"
MATCHES = "{matches} of {bits} bits agree with key {key}. At least {threshold} are needed."
MATCHES_ONLY = "{matches} of {bits} bits agree with key {key}. No number would be enough at this rate of false alarms."
CHANCE = "An unmarked picture would agree this well by chance in about {odds} cases."
CORRECTED = "With {keys} tried and {readings}, that is about {odds}."
KEYS_TRIED = ("no keys", "1 key", "{count} keys")
READINGS = ("no reading", "1 reading", "{count} readings")
ODDS = "1 of {count}"
ODDS_HALF = "every second"
ODDS_MOST = "most"
BITS = "The bits: dark ones agree with the key, light ones do not."
BIT_LABEL = "{matches} of {bits} bits agree"
DETAILS = "All figures"
ROWS = {
    "p_value": "p-value, one key and reading",
    "p_corrected": "p-value, corrected (decides)",
    "alpha": "accepted false alarms",
    "test": "what the p-value rests on",
    "soft_p_corrected": "second test (soft), corrected p-value",
    "keys": "keys tried",
    "searches": "readings tried",
    "extractor": "extractor (SHA-256)",
    "preprocessing": "preparation",
    "sha256": "file (SHA-256)",
}

KEYS = "Keys"
KEYS_ABOUT = (
    "A key is drawn at random, and its bits are stored encrypted. A revoked key stays in the history and is not looked "
    "for any more."
)
KEY_COLUMNS = ("Key", "Owner", "Made", "State")
COUNTS, REVOKED = "counts", "revoked: {reason}"
ATTACHED = "in a decoder"
NO_KEYS_YET = "No keys yet."
OWNER_LABEL = "Owner"
OWNER_INFO = "Whose pictures the key marks: a person, a team, a model."
NEW_KEY = "New key"
EXAMPLE = "Try it with the example mark"
EXAMPLE_ABOUT = (
    "Its key comes with lrdiff, so everybody knows it and it proves nothing; it shows how marks are written and found."
)
EXAMPLE_READY = "The watermark is on, with the example's key {id}. Press Generate, then verify the image."
MADE = "Key {id} is made. Train it into a decoder: lrdiff train watermark --method.key {id}"
WHICH = "Key"
REASON = "Why"
REASON_INFO = "One line that verification will show."
REVOKE = "Revoke key"
IS_REVOKED = "Key {id} is revoked."
GIVE_OWNER = "Say whose key it is."
GIVE_REASON = "Choose a key and say why it is revoked."
REVOKED_DOUBT = "the key was revoked on {when} ({reason}), so agreeing with it proves nothing any more"
OTHER_EXTRACTOR = "key {id} is read with another extractor than the one that is installed"
