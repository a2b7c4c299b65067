"""The `mags` command."""
