"""Client of a Mags server: run scripts in sandboxes that have a kernel of their own.

from mags import Mags
result = Mags().run_and_wait("echo hello")
print(result["exit_code"], [line["message"] for line in result["logs"]])
"""

from typing import TYPE_CHECKING, Any

from mags.errors import MagsError

if TYPE_CHECKING:
    from mags.client import Mags

__version__ = "0.1.0"
__all__ = ["Mags", "MagsError", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the client when it is first asked for: its HTTP library takes 100 ms to import."""
    if name == "Mags":
        from mags.client import Mags

        return Mags
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
