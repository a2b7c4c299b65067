"""The process of an edge: gateways, without rights, and a socket to the node.

Started by `gateway.edges`; ends with the node.
"""
