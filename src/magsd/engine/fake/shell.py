"""Runs what `syntax` understood, one command after the other, as a shell would.

Owns variables, expansion, redirects, traps and control flow. What a command
does is found in the table that it is given.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from magsd.engine.fake import tree
from magsd.engine.fake.machine import place
from magsd.engine.fake.program import Program
from magsd.engine.fake.sinks import (
    WORD_MAX,
    Captured,
    FileSink,
    Nowhere,
    ShellError,
    Sink,
    StreamSink,
)
from magsd.engine.fake.syntax import ShellSyntaxError, parse
from magsd.engine.fake.words import split, whole_number
from magsd.guest.wire import Channel

_VARIABLES_MAX: Final = 256
_VARIABLES_BYTES: Final = 1 << 20
_WORDS_MAX: Final = 1 << 15
_SHELLS_MAX: Final = 8
_NULL: Final = "/dev/null"
_STANDARD: Final = {_NULL: 0, "/dev/stdout": 1, "/dev/stderr": 2}
_PROGRAM_FOLDERS: Final = frozenset(
    f"{parent}{name}" for parent in ("", "/usr", "/usr/local") for name in ("/bin", "/sbin")
)
NOT_FOUND: Final = 127
USAGE: Final = 2

Command = Callable[["Shell", list[str]], Awaitable[int]]


class ExitShell(Exception):
    """The shell ends, with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class LeaveLoop(Exception):
    """A loop is left, or its next round begun."""

    def __init__(self, *, for_good: bool) -> None:
        super().__init__()
        self.for_good = for_good


class Shell:
    """One shell: the script's own, or one inside it."""

    def __init__(
        self,
        program: Program,
        commands: Mapping[str, Command],
        *,
        environment: Mapping[str, str],
        arguments: tuple[str, ...],
        outer: "Shell | None" = None,
    ) -> None:
        self.program = program
        self.machine = program.machine
        self.commands = commands
        self.arguments = arguments
        self.variables = dict(environment)
        self.exported = set(environment)
        self.status = 0
        self._size = 0
        self._depth: int = outer._depth + 1 if outer else 0
        self.cwd: str = outer.cwd if outer else program.cwd
        self.sinks: dict[int, Sink] = (
            dict(outer.sinks)
            if outer
            else {
                1: StreamSink(program, Channel.OUT),
                2: StreamSink(program, Channel.ERR),
            }
        )
        self.input_path: str | None = outer.input_path if outer else None
        """The file that descriptor 0 was redirected from; None: the program's own input."""

    def inner(self, environment: Mapping[str, str], arguments: tuple[str, ...]) -> "Shell":
        """Return a shell inside this one. Raises `ShellError` when there are too many."""
        if self._depth >= _SHELLS_MAX:
            raise ShellError("too many shells inside one another")
        return Shell(
            self.program, self.commands, environment=environment, arguments=arguments, outer=self
        )

    @property
    def environment(self) -> dict[str, str]:
        """What a program started here would get."""
        return {name: self.variables[name] for name in self.exported if name in self.variables}

    async def run(self, script: str) -> int:
        """Run a script to its end, with its trap of the exit; return its status."""
        try:
            block = parse(script)
        except ShellSyntaxError as error:
            await self.complain(str(error))
            return USAGE
        status = await self.ended(self._block(block))
        if self._depth <= 1 and (handler := self.program.handlers.pop(0, None)) is not None:
            self.status = status
            await self.ended(self._block(parse(handler)))
        return status

    async def run_words(self, words: list[str]) -> int:
        """Run one command; return its status."""
        return await self.ended(self._command(words))

    async def ended(self, work: Awaitable[int]) -> int:
        """Return the status of work in this shell: `exit` there ends no more than that."""
        try:
            return await work
        except ExitShell as ended:
            return ended.status
        except LeaveLoop:
            return 0
        except ShellError as error:
            await self.complain(str(error))
            return USAGE

    async def say(self, text: str) -> None:
        """Print to descriptor 1."""
        await self.sinks[1].write(text.encode("utf-8", "surrogateescape"))

    async def complain(self, text: str) -> None:
        """Print a line to descriptor 2."""
        with suppress(OSError):  # a full disk has no room for complaints
            await self.sinks[2].write(f"{text}\n".encode("utf-8", "surrogateescape"))

    async def misused(self, usage: str) -> int:
        """Tell how a command is used; return its status."""
        await self.complain(f"usage: {usage}")
        return USAGE

    def assign(self, name: str, value: str) -> None:
        """Set a variable. Raises `ShellError` when there are too many."""
        self._size += len(value) - len(self.variables.get(name, ""))
        is_one_more = name not in self.variables and len(self.variables) >= _VARIABLES_MAX
        if is_one_more or self._size > _VARIABLES_BYTES:
            raise ShellError("the variables take too much room")
        self.variables[name] = value

    def place(self, path: str) -> str:
        """Return the one name of a path."""
        return place(self.cwd, path)

    # --- nodes ---------------------------------------------------------------------

    async def _block(self, block: tree.Block) -> int:
        status = 0
        for item in block.items:
            status = self.status = await self._node(item)
        return status

    async def _node(self, node: tree.Node) -> int:
        match node:
            case tree.Simple():
                return await self._simple(node)
            case tree.Block():
                return await self._block(node)
            case tree.Chain():
                return await self._chain(node)
            case tree.Not():
                return int(await self._node(node.node) == 0)
            case tree.If():
                return await self._if(node)
            case tree.Loop():
                return await self._loop(node)
            case tree.Each():
                return await self._each(node)
            case tree.Subshell():
                return await self._subshell(node.body)
            case tree.Redirected():
                return await self._redirected(node.redirects, lambda: self._node(node.node))

    async def _chain(self, chain: tree.Chain) -> int:
        status = self.status = await self._node(chain.first)
        for operator, node in chain.rest:
            if (status == 0) is (operator == "&&"):
                status = self.status = await self._node(node)
        return status

    async def _if(self, node: tree.If) -> int:
        for condition, body in node.branches:
            if await self._block(condition) == 0:
                return await self._block(body)
        return 0 if node.otherwise is None else await self._block(node.otherwise)

    async def _loop(self, loop: tree.Loop) -> int:
        status = 0
        while True:
            await self.machine.step()
            try:
                if (await self._block(loop.condition) == 0) is loop.is_until:
                    return status
                status = await self._block(loop.body)
            except LeaveLoop as left:
                if left.for_good:
                    return 0

    async def _each(self, node: tree.Each) -> int:
        status = 0
        for value in await self._fields(node.words):
            await self.machine.step()
            self.assign(node.name, value)
            try:
                status = await self._block(node.body)
            except LeaveLoop as left:
                if left.for_good:
                    return 0
        return status

    async def _subshell(self, body: tree.Block) -> int:
        shell = self.inner(self.variables, self.arguments)
        shell.exported = set(self.exported)
        shell.status = self.status
        return await shell.ended(shell._block(body))

    # --- a command -----------------------------------------------------------------

    async def _simple(self, node: tree.Simple) -> int:
        await self.machine.step()
        self.status, before = 0, self.status
        values = {name: await self._value(word, before) for name, word in node.assignments}
        words = await self._fields(node.words, before)
        if not words:
            for name, value in values.items():
                self.assign(name, value)
            status = self.status  # of the last substitution
            return await self._redirected(node.redirects, lambda: _done(status))
        with self._assigned(values):
            status = await self._redirected(node.redirects, lambda: self._command(words))
        await self._answer_signals()
        return status

    async def _command(self, words: list[str]) -> int:
        name = words[0]
        folder, _, last = name.rpartition("/")
        command = self.commands.get(last if folder in _PROGRAM_FOLDERS else name)
        if command is None:
            await self.complain(f"{name[:200]}: not found (the fake engine runs no programs)")
            return NOT_FOUND
        try:
            return await command(self, words)
        except OSError as error:
            await self.complain(f"{last}: {error.strerror}")
            return 1

    @contextmanager
    def _assigned(self, values: Mapping[str, str]) -> Iterator[None]:
        """Have variables for one command, exported."""
        if not values:
            yield
            return
        variables, exported = dict(self.variables), set(self.exported)
        for name, value in values.items():
            self.assign(name, value)
        self.exported |= values.keys()
        try:
            yield
        finally:
            self.variables, self.exported = variables, exported

    async def _answer_signals(self) -> None:
        while self.program.pending:
            number = self.program.pending.pop(0)
            if (handler := self.program.handlers.get(number)) is not None:
                status = self.status
                await self._block(parse(handler))
                self.status = status

    async def _redirected(
        self,
        redirects: tuple[tree.Redirect, ...],
        run: Callable[[], Awaitable[int]],
    ) -> int:
        if not redirects:
            return await run()
        sinks, path = dict(self.sinks), self.input_path
        try:
            for redirect in redirects:
                if (trouble := await self._redirect(redirect)) is not None:
                    self.sinks = sinks
                    await self.complain(trouble)
                    return 1
            return await run()
        finally:
            self.sinks, self.input_path = sinks, path

    async def _redirect(self, redirect: tree.Redirect) -> str | None:
        """Carry out a redirect; return what is wrong with it, if anything."""
        target = await self._value(redirect.target)
        if redirect.kind == ">&":
            source = self.sinks.get(whole_number(target) or 0)
            if source is None:
                return f"{target[:200]}: no such descriptor"
            self.sinks[redirect.descriptor] = source
            return None
        path = self.place(target)
        if (standard := _STANDARD.get(path)) is not None and redirect.kind != "<":
            self.sinks[redirect.descriptor] = self.sinks[standard] if standard else Nowhere()
            return None
        try:
            if redirect.kind == "<":
                if path != _NULL:
                    self.machine.read(path)
                self.input_path = path
                return None
            self.machine.write(path, b"", is_appended=redirect.kind == ">>")
        except OSError as error:
            return f"cannot open {target[:200]}: {error.strerror}"
        self.sinks[redirect.descriptor] = FileSink(self.machine, path)
        return None

    # --- words ---------------------------------------------------------------------

    async def _value(self, word: tree.Word, status: int | None = None) -> str:
        """Return what a word stands for, as one text."""
        return "".join([piece for piece, _ in await self._pieces(word, status)])

    async def _fields(self, words: tuple[tree.Word, ...], status: int | None = None) -> list[str]:
        """Return the words that words stand for: unquoted expansions are split at blanks."""
        fields: list[str] = []
        size = 0
        for word in words:
            found = split(await self._pieces(word, status))
            size += sum(map(len, found))
            fields += found
            if size > WORD_MAX or len(fields) > _WORDS_MAX:
                raise ShellError("a command with too many words")
        return fields

    async def _pieces(self, word: tree.Word, status: int | None) -> list[tuple[str, bool]]:
        """Return what the parts of a word stand for, and which of them are to be split."""
        pieces: list[tuple[str, bool]] = []
        size = 0
        for part in word:
            pieces.append(await self._piece(part, status))
            size += len(pieces[-1][0])
            if size > WORD_MAX:
                raise ShellError(f"a word of more than {WORD_MAX} bytes")
        return pieces

    async def _piece(self, part: tree.Part, status: int | None) -> tuple[str, bool]:
        """Return what a part stands for, and whether that is to be split."""
        match part:
            case tree.Text():
                return part.text, False
            case tree.Variable():
                return self._variable(part.name, status), not part.is_quoted
            case tree.Substitution():
                return await self._captured(part.body), not part.is_quoted

    def _variable(self, name: str, status: int | None) -> str:
        match name:
            case "?":
                return str(self.status if status is None else status)
            case "$":
                return str(self.program.pid)
            case "#":
                return str(max(0, len(self.arguments) - 1))
            case "@":
                return " ".join(self.arguments[1:])
            case _ if name.isdigit():
                number = int(name)
                return self.arguments[number] if number < len(self.arguments) else ""
            case _:
                return self.variables.get(name, "")

    async def _captured(self, body: tree.Block) -> str:
        shell = self.inner(self.variables, self.arguments)
        shell.exported = set(self.exported)
        sink = shell.sinks[1] = Captured()
        self.status = await shell.ended(shell._block(body))
        return sink.data.decode("utf-8", "surrogateescape").rstrip("\n")


async def _done(status: int) -> int:
    return status
