"""Speaking with a VM: its wire, its shim's socket, its journal and state, what its agent does."""
