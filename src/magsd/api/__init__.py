"""The HTTP face: parse, one call into the core, render. The only place that knows HTTP."""
