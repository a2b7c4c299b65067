"""SFTP servers in a VM: the agent's own, so that the image needs none."""

from magsd.guest.shim import ShimConnection
from magsd.guest.transient import Stream
from magsd.guest.wire import pack_fields


async def sftp(connection: ShimConnection) -> Stream:
    """Start an SFTP server (protocol 3) as root in `/root`; return its bytes as a stream.

    What is written to the stream is a client's packets, what is read from it
    the answers. The server ends with its input or with the stream. Raises
    `ShimError` when agent or shim refuse.
    """
    return await connection.open_stream(pack_fields("sftp"))
