"""nftables by its own library, in this process.

Applies to the network namespace of the calling thread, in about 1 ms; a
child `nft` in another namespace would cost ten times that on the launch path.
"""

import ctypes
from typing import Final

from magsd.model.errors import LaunchError

_LIBRARY: Final = "libnftables.so.1"


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise LaunchError(
            "nftables is not installed: install the package nftables", str(error)
        ) from error
    context = ctypes.c_void_p
    library.nft_ctx_new.restype = context
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.restype = None
    library.nft_ctx_free.argtypes = [context]
    library.nft_run_cmd_from_buffer.argtypes = [context, ctypes.c_char_p]
    for stream in ("output", "error"):
        getattr(library, f"nft_ctx_buffer_{stream}").argtypes = [context]
        getter = getattr(library, f"nft_ctx_get_{stream}_buffer")
        getter.restype = ctypes.c_char_p
        getter.argtypes = [context]
    return library


def run(commands: str) -> str:
    """Apply commands as one transaction; return what `nft` would print.

    Raises `LaunchError` when the library is missing or the kernel refuses.
    """
    library = _load()
    context = library.nft_ctx_new(0)
    if not context:
        raise LaunchError("nftables cannot be used", "nft_ctx_new failed")
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        if library.nft_run_cmd_from_buffer(context, commands.encode()) != 0:
            printed = library.nft_ctx_get_error_buffer(context).decode(errors="replace")
            raise LaunchError(
                "the network rules could not be applied: "
                "is nf_tables in the host's kernel, and is this process root?",
                f"nft: {printed.strip()}",
            )
        return str(library.nft_ctx_get_output_buffer(context).decode(errors="replace"))
    finally:
        library.nft_ctx_free(context)
