"""What strangers' bytes reach first: HTTP for the servers inside VMs, and SSH.

It knows nothing of jobs or rows: whom a host name or a key means, and the
use of a VM, are asked of the node.
"""
