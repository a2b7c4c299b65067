"""Where the client finds its server and token: arguments, environment, `~/.mags/config.json`."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mags.errors import MagsError

DEFAULT_API_URL = "http://127.0.0.1:7070"


@dataclass(frozen=True)
class Configuration:
    """The server's address without a trailing slash, and the token, if there is one."""

    api_url: str
    api_token: str | None


def config_path() -> Path:
    """Return the path of the user's configuration file."""
    return Path.home() / ".mags" / "config.json"


def load(api_url: str | None = None, api_token: str | None = None) -> Configuration:
    """Return what is configured: an argument wins over the environment, that over the file.

    Raises `MagsError` when the file is damaged, or the address is not one.
    """
    saved = _read_file()
    url = api_url or os.environ.get("MAGS_API_URL") or saved.get("api_url") or DEFAULT_API_URL
    token = (
        api_token
        or os.environ.get("MAGS_API_TOKEN")
        or os.environ.get("MAGS_TOKEN")
        or saved.get("api_token")
    )
    if not url.startswith(("http://", "https://")):
        raise MagsError(f"the server's address must begin with http:// or https://: {url!r}")
    return Configuration(url.rstrip("/"), token or None)


def save(configuration: Configuration) -> Path:
    """Write `configuration` for this user alone (mode 0600) and return the file's path.

    Raises `MagsError` when it cannot be written.
    """
    path = config_path()
    content = {"api_url": configuration.api_url, "api_token": configuration.api_token}
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        # mkstemp makes the file 0600 from the start; the rename replaces the old one whole.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix="config.")
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
        os.replace(temporary, path)
    except OSError as error:
        raise MagsError(f"cannot save {path}: {error}") from error
    return path


def forget() -> Path | None:
    """Remove the user's configuration file; return its path, or None when there was none."""
    path = config_path()
    try:
        path.unlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MagsError(f"cannot remove {path}: {error}") from error
    return path


def _read_file() -> dict[str, str]:
    path = config_path()
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise MagsError(f"cannot read {path}: {error}; run `mags login` again") from error
    if not isinstance(content, dict):
        raise MagsError(f"{path} is not a JSON object; run `mags login` again")
    return {key: value for key, value in content.items() if isinstance(value, str)}
