"""What a script is made of, once it is understood. Pure data, made by `syntax`."""

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Text:
    """Characters that stand for themselves."""

    text: str
    is_quoted: bool


@dataclass(frozen=True, slots=True)
class Variable:
    """`$NAME`, `${NAME}`, `$?`, `$$`, `$1`."""

    name: str
    is_quoted: bool


@dataclass(frozen=True, slots=True)
class Substitution:
    """`$(...)`: what the commands print."""

    body: "Block"
    is_quoted: bool


Part: TypeAlias = Text | Variable | Substitution
Word: TypeAlias = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Redirect:
    """`>`, `>>`, `<` to or from a file, or `>&` to another descriptor."""

    descriptor: int
    kind: str
    target: Word


@dataclass(frozen=True, slots=True)
class Simple:
    """A command with its words, or assignments alone."""

    assignments: tuple[tuple[str, Word], ...]
    words: tuple[Word, ...]
    redirects: tuple[Redirect, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Commands that run one after the other."""

    items: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """Commands joined by `&&` and `||`."""

    first: "Node"
    rest: tuple[tuple[str, "Node"], ...]


@dataclass(frozen=True, slots=True)
class Not:
    """`! command`."""

    node: "Node"


@dataclass(frozen=True, slots=True)
class If:
    """`if … then … elif … else … fi`."""

    branches: tuple[tuple[Block, Block], ...]
    otherwise: Block | None


@dataclass(frozen=True, slots=True)
class Loop:
    """`while` and `until`."""

    condition: Block
    body: Block
    is_until: bool


@dataclass(frozen=True, slots=True)
class Each:
    """`for NAME in WORDS`."""

    name: str
    words: tuple[Word, ...]
    body: Block


@dataclass(frozen=True, slots=True)
class Subshell:
    """`( … )`: its variables, folder and exit are its own."""

    body: Block


@dataclass(frozen=True, slots=True)
class Redirected:
    """A compound command whose output goes elsewhere."""

    node: "Node"
    redirects: tuple[Redirect, ...]


Node: TypeAlias = Simple | Block | Chain | Not | If | Loop | Each | Subshell | Redirected
