"""Sentences of the 3D page: a head, seen from all sides."""

from __future__ import annotations

TITLE = "A head from all sides"
ABOUT = (
    "Choose a person whose photos were learned, or let one be drawn. To learn somebody: on the Train page take the "
    "method <code>my3dgen</code> and about ten photos from different sides, such as those in "
    "<code>assets/people</code>; previews of the run show the head as it becomes that person."
)
ABSENT = (
    "<b>There is no generator of heads yet.</b> <code>lrdiff embedded make heads</code> makes one in a few hours; then "
    "this page works without a restart."
)
ANOTHER_GENERATOR = (
    "{run}: was learned on another generator than this page shows; lrdiff triplane render GENERATOR --adapter {run} "
    "shows it"
)
USE = "Show the head"
PERSON = "Whose head"
PERSON_INFO = "Runs of my3dgen, and installed adapters of the same generator."
NOBODY = "Drawn at random"
SEED = "Number of the head"
SEED_INFO = "The same number gives the same head. For one that is drawn at random."
PHOTO = "Photo"
PHOTO_INFO = "Which of the person's photos is shown, from 0."
TO = "Another photo"
TO_INFO = "Into which the head changes; the slider says how far."
SHARE = "Between both photos"
EDIT = "Change"
EDIT_INFO = "For a person, it ends where the photos end."
NO_EDIT = "Nothing"
AMOUNT = "By how much"
TURN = "Turn around"
MESH = "Make a mesh"
PICTURE = "From the front"
VIDEO = "Turn"
SURFACE = "Surface"
FILES = "Files"
