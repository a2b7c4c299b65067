"""VMs that are only pretended: an engine that runs no program.

Three parts. `engine` is the contract's side in the daemon; `host` is the one
process that holds all VMs of a data directory, and outlives the daemon; inside
a VM (`machine`) scripts are interpreted by a small shell of its own (`syntax`,
`shell`, `commands`). Towards the daemon every VM has a shim (`shim`,
`durable`, `transient`) that speaks the wire and keeps the files of
`docs/reference/wire.md`, so that all else works as with a real one.
"""
