"""The folders of a guest's root that something is mounted on.

They lie in a layer below all of an image: made in the root itself, they would
count among what a VM has changed.
"""

from typing import Final

AGENT_PLACES: Final = ("dev", "proc", "run", "run/mags", "sys", "uploads")
"""Relative to the root, each behind the one it lies in."""
