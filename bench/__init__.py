"""Measurements of this project and of its peers, side by side on one machine."""
