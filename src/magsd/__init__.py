"""The platform: `magsd serve` runs scripts in sandboxes with a kernel of their own."""

__version__ = "0.1.0"
