"""The grammar of the built-in shell: text in, a tree out. Runs nothing, does no I/O.

Owns what is understood, and says of the rest what it was. What a command does
is `commands`' part, in which order they run `shell`'s.
"""

import re
from typing import Final

from magsd.engine.fake.tree import (
    Block,
    Chain,
    Each,
    If,
    Loop,
    Node,
    Not,
    Part,
    Redirect,
    Redirected,
    Simple,
    Subshell,
    Substitution,
    Text,
    Variable,
    Word,
)

_DEPTH_MAX: Final = 40
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BRACED: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*|[0-9]|[?$#@])\}")
_SPECIAL: Final = re.compile(r"[0-9?$#@]")
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")
_BLANKS: Final = re.compile(r"(?:[ \t]|\\\n)*")
_LITERAL: Final = re.compile(r"[^\s;&|()<>'\"\\$`]+")
_QUOTED_LITERAL: Final = re.compile(r'[^"\\$`]+')
_REDIRECT: Final = re.compile(r"([0-9]?)(>>|>&|>|<(?![<&]))")
_KEYWORD: Final = re.compile(
    r"(?:if|then|elif|else|fi|while|until|for|do|done|in|!|\{|\})(?=[\s;&|()<>]|$)"
)
_ENDS: Final = frozenset({"then", "elif", "else", "fi", "do", "done", "}"})


class ShellSyntaxError(Exception):
    """The script is not understood; the text says where and what."""


def parse(script: str) -> Block:
    """Return the tree of a script. Raises `ShellSyntaxError`."""
    return _Parser(script.replace("\0", "")).script()


class _Parser:
    """One pass over the text; methods begin where their construct does, and end behind it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def script(self) -> Block:
        block = self._block()
        if self._at < len(self._text):
            raise self._unexpected()
        return block

    # --- lists ---------------------------------------------------------------------

    def _block(self) -> Block:
        """Commands up to what ends them: the end, `)`, or a word such as `done`."""
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise self._error("it is nested too deeply")
        items: list[Node] = []
        while True:
            self._skip_lines()
            if self._at == len(self._text) or self._is_at(")") or self._keyword() in _ENDS:
                break
            items.append(self._chain())
            self._skip_blanks()
            if not (self._is_at(";") or self._is_at("\n") or self._is_at("#")):
                break
            if self._is_at(";"):
                self._at += 1
                if self._is_at(";"):
                    raise self._unexpected()
        self._depth -= 1
        return Block(tuple(items))

    def _chain(self) -> Node:
        first = self._negated()
        rest: list[tuple[str, Node]] = []
        while (operator := self._text[self._at : self._at + 2]) in ("&&", "||"):
            self._at += 2
            self._skip_lines()
            rest.append((operator, self._negated()))
        return Chain(first, tuple(rest)) if rest else first

    def _negated(self) -> Node:
        if self._keyword() == "!":
            self._at += 1
            self._skip_blanks()
            self._depth += 1
            if self._depth > _DEPTH_MAX:
                raise self._error("it is nested too deeply")
            node: Node = Not(self._negated())
            self._depth -= 1
            return node
        node = self._command()
        self._skip_blanks()
        two = self._text[self._at : self._at + 2]
        if two not in ("&&", "||") and two[:1] in ("|", "&"):
            what = "pipes" if two[0] == "|" else "commands in the background"
            raise self._error(f"{two[0]}: the fake engine's shell knows no {what}")
        return node

    # --- commands ------------------------------------------------------------------

    def _command(self) -> Node:
        node: Node
        match self._keyword():
            case "if":
                node = self._if()
            case "while" | "until" as word:
                self._at += len(word)
                condition = self._block()
                node = Loop(condition, self._do_done(), word == "until")
            case "for":
                node = self._for()
            case "{":
                self._at += 1
                node = self._block()
                self._expect("}")
            case None if self._is_at("("):
                self._at += 1
                node = Subshell(self._block())
                if not self._is_at(")"):
                    raise self._unexpected()
                self._at += 1
            case None | "in":
                return self._simple()
            case _:
                raise self._unexpected()
        redirects = self._redirects()
        return Redirected(node, redirects) if redirects else node

    def _if(self) -> If:
        branches: list[tuple[Block, Block]] = []
        otherwise = None
        self._expect("if")
        while True:
            condition = self._block()
            self._expect("then")
            branches.append((condition, self._block()))
            if self._keyword() != "elif":
                break
            self._expect("elif")
        if self._keyword() == "else":
            self._expect("else")
            otherwise = self._block()
        self._expect("fi")
        return If(tuple(branches), otherwise)

    def _for(self) -> Each:
        self._expect("for")
        self._skip_blanks()
        name = _NAME.match(self._text, self._at)
        if name is None:
            raise self._unexpected()
        self._at = name.end()
        self._skip_blanks()
        self._expect("in")
        words: list[Word] = []
        self._skip_blanks()
        while (word := self._word()) is not None:
            words.append(word)
            self._skip_blanks()
        if not (self._is_at(";") or self._is_at("\n")):
            raise self._unexpected()
        self._at += 1
        self._skip_lines()
        return Each(name[0], tuple(words), self._do_done())

    def _do_done(self) -> Block:
        self._expect("do")
        body = self._block()
        self._expect("done")
        return body

    def _simple(self) -> Simple:
        assignments: list[tuple[str, Word]] = []
        words: list[Word] = []
        redirects: list[Redirect] = []
        while True:
            self._skip_blanks()
            if found := self._redirects():
                redirects += found
                continue
            if not words and (named := _ASSIGNMENT.match(self._text, self._at)):
                self._at = named.end()
                assignments.append((named[1], self._word() or ()))
            elif (word := self._word()) is not None:
                words.append(word)
            else:
                break
        if not (assignments or words or redirects):
            raise self._unexpected()
        return Simple(tuple(assignments), tuple(words), tuple(redirects))

    def _redirects(self) -> tuple[Redirect, ...]:
        found: list[Redirect] = []
        while True:
            self._skip_blanks()
            match = _REDIRECT.match(self._text, self._at)
            if match is None:
                return tuple(found)
            self._at = match.end()
            self._skip_blanks()
            target = self._word()
            if target is None:
                raise self._unexpected()
            usual = 0 if match[2] == "<" else 1
            found.append(Redirect(int(match[1] or usual), match[2], target))

    # --- words ---------------------------------------------------------------------

    def _word(self) -> Word | None:
        parts: list[Part] = []
        begin = self._at
        if self._is_at("#"):
            return None
        while self._at < len(self._text):
            if literal := _LITERAL.match(self._text, self._at):
                parts.append(Text(literal[0], is_quoted=False))
                self._at = literal.end()
                continue
            match self._text[self._at]:
                case "'":
                    parts.append(self._single_quoted())
                case '"':
                    parts += self._double_quoted()
                case "\\":
                    if (escaped := self._text[self._at + 1 : self._at + 2]) != "\n":
                        parts.append(Text(escaped or "\\", is_quoted=True))
                    self._at += 2
                case "$":
                    parts.append(self._expansion(is_quoted=False))
                case "`":
                    raise self._error("`: the fake engine's shell knows $(…) only")
                case _:
                    break
        self._at = min(self._at, len(self._text))
        return tuple(parts) if self._at > begin else None

    def _single_quoted(self) -> Text:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise self._error("' is not closed")
        text = self._text[self._at + 1 : end]
        self._at = end + 1
        return Text(text, is_quoted=True)

    def _double_quoted(self) -> list[Part]:
        parts: list[Part] = [Text("", is_quoted=True)]
        self._at += 1
        while self._at < len(self._text):
            if literal := _QUOTED_LITERAL.match(self._text, self._at):
                parts.append(Text(literal[0], is_quoted=True))
                self._at = literal.end()
                continue
            match self._text[self._at]:
                case '"':
                    self._at += 1
                    return parts
                case "\\":
                    escaped = self._text[self._at + 1 : self._at + 2]
                    kept = escaped if escaped and escaped in '$`"\\' else f"\\{escaped}"
                    parts.append(Text("" if escaped == "\n" else kept, is_quoted=True))
                    self._at += 2
                case "$":
                    parts.append(self._expansion(is_quoted=True))
                case _:
                    raise self._error("`: the fake engine's shell knows $(…) only")
        raise self._error('" is not closed')

    def _expansion(self, *, is_quoted: bool) -> Part:
        self._at += 1
        if self._text.startswith("((", self._at):
            raise self._error("$((: the fake engine's shell does not calculate")
        if self._is_at("("):
            self._at += 1
            body = self._block()
            if not self._is_at(")"):
                raise self._error("$( is not closed")
            self._at += 1
            return Substitution(body, is_quoted)
        if self._is_at("{"):
            if (match := _BRACED.match(self._text, self._at)) is None:
                raise self._error("${: the fake engine's shell knows ${NAME} only")
            self._at = match.end()
            return Variable(match[1], is_quoted)
        match = _NAME.match(self._text, self._at) or _SPECIAL.match(self._text, self._at)
        if match is None:
            return Text("$", is_quoted=True)
        self._at = match.end()
        return Variable(match[0], is_quoted)

    # --- characters ----------------------------------------------------------------

    def _is_at(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _keyword(self) -> str | None:
        match = _KEYWORD.match(self._text, self._at)
        return match[0] if match else None

    def _expect(self, word: str) -> None:
        if self._keyword() != word:
            raise self._error(f"{word} is missing before {self._next()}")
        self._at += len(word)

    def _skip_blanks(self) -> None:
        match = _BLANKS.match(self._text, self._at)
        assert match is not None
        self._at = match.end()

    def _skip_lines(self) -> None:
        """Skip blanks, ends of lines and comments."""
        while True:
            self._skip_blanks()
            if self._is_at("#"):
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif self._at < len(self._text) and self._text[self._at].isspace():
                self._at += 1
            else:
                return

    def _next(self) -> str:
        words = self._text[self._at : self._at + 40].split(maxsplit=1)
        return repr(words[0]) if words else "the end"

    def _unexpected(self) -> ShellSyntaxError:
        return self._error(f"syntax error: unexpected {self._next()}")

    def _error(self, text: str) -> ShellSyntaxError:
        line = self._text.count("\n", 0, self._at) + 1
        return ShellSyntaxError(f"{line}: {text}")
