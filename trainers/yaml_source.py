"""Reads a YAML file into plain data and records the line of each value for error messages."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from plugins.regular_files import UnsuitableFileError, read_regular_file

MAX_DEPTH = 40

KeyPath = tuple[str | int, ...]
"""Path to a value: keys of mappings and indices of lists, from the top."""
PlainScalar = str | int | float | bool | None

_Loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_Dumper = yaml.CSafeDumper if yaml.__with_libyaml__ else yaml.SafeDumper

# Scalars follow YAML 1.2. PyYAML implements 1.1, where 1e-3 is text, 010 is 8, 1:30 is 90 and `no` is false.
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_TEXT = "tag:yaml.org,2002:str"
_LONGEST_NUMBER = 40
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]{0,39}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class SpecError(ValueError):
    """A user's file has mistakes. The message has a line for each; the attributes describe the first.

    Attributes:
        file: The path of the file as given.
        line: Line of the mistake, starting at 1; `None` if there is no line (a missing file, a command-line value).
        path: Place in the file, such as `stages[1].epochs`; empty for the whole file.
        message: What must hold, what was found, and what to do.
        others: The other mistakes.
    """

    others: tuple["SpecError", ...] = ()

    def __init__(self, file: str | Path, message: str, *, line: int | None = None, path: KeyPath = ()) -> None:
        self.file, self.line, self.path, self.message = str(file), line, format_path(path), message
        where = self.file if line is None else f"{self.file}:{line}"
        super().__init__(f"{where}: {self.path}: {message}" if self.path else f"{where}: {message}")

    @property
    def lines(self) -> list[str]:
        """A line for each mistake."""
        return [super().__str__(), *(line for other in self.others for line in other.lines)]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class YamlLimits(NamedTuple):
    """What a file may hold."""

    max_bytes: int = 1024 * 1024
    max_values: int = 20_000
    """Values after aliases are expanded."""


OF_STUDY_FILES = YamlLimits()
OF_MODEL_CARDS = YamlLimits(max_bytes=16 * 1024 * 1024, max_values=300_000)
"""A model's description lists up to 100,000 classes."""


class Mark(NamedTuple):
    """A position in a file; line and column start at 1."""

    line: int
    column: int


@dataclass(frozen=True, kw_only=True)
class YamlSource:
    """The content of a YAML file."""

    file: str
    data: dict[str, Any]
    """Dicts with text keys, lists, and None, bool, int, float or str."""
    marks: Mapping[KeyPath, Mark]
    """Position of each key and list entry; empty if the data do not come from a file."""
    folder: Path | None = None
    """Folder of relative paths in the data; `None` for that of the file."""

    @property
    def base(self) -> Path:
        """The folder that relative paths in the data refer to."""
        return self.folder or Path(self.file).absolute().parent

    def line(self, path: KeyPath) -> int | None:
        """Line of `path`, or of its innermost parent in the file; `None` if there is no file."""
        if not self.marks:
            return None
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks[path].line

    def error(self, path: KeyPath, message: str) -> SpecError:
        """The error to raise for the value at `path`."""
        return SpecError(self.file, message, line=self.line(path), path=path)


def read_yaml(
    file: str | Path, *, limits: YamlLimits = OF_STUDY_FILES, version: Literal["1.1", "1.2"] = "1.2"
) -> YamlSource:
    """Read one mapping from a YAML file without executing anything in it.

    Args:
        file: The file.
        limits: What it may hold.
        version: How plain scalars are read: as in YAML 1.2, which people expect, or in 1.1, which PyYAML writes. Only
            with 1.2, numbers must be finite.

    Raises:
        SpecError: The file cannot be read, is larger than the limit, is not YAML or not a mapping, nests deeper than
            `MAX_DEPTH`, holds too many values after aliases are expanded, repeats a key, has keys that are not text,
            or uses tags.
    """
    return parse_yaml(_read_bytes(file, limits.max_bytes), file, limits=limits, version=version)


def parse_yaml(
    raw: bytes,
    file: str | Path,
    *,
    folder: Path | None = None,
    limits: YamlLimits = OF_STUDY_FILES,
    version: Literal["1.1", "1.2"] = "1.2",
) -> YamlSource:
    """Read one mapping from the content of a YAML file. JSON is YAML, too.

    Args:
        raw: The content.
        file: Name of the file for messages.
        folder: Folder of relative paths in it, if that is not the file's.
        limits: As in `read_yaml`.
        version: As in `read_yaml`.

    Raises:
        SpecError: As in `read_yaml`.
    """
    if len(raw) > limits.max_bytes:
        raise SpecError(
            file,
            f"must have at most {limits.max_bytes:,} bytes, but has {len(raw):,}. Check the file.",
        )
    _check_encoding(file, raw)
    try:
        _check_events(file, raw, limits.max_values)
        node = yaml.compose(raw, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _syntax_error(file, raw, error) from None
    if not isinstance(node, yaml.MappingNode):
        found = (
            "nothing" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else f"{node.value!r:.60}"
        )
        raise SpecError(
            file, f"must be a mapping of keys to values, but got {found}.", line=1 if node is None else _line(node)
        )
    builder = _Builder(file, limits.max_values, _scalar_of_1_1 if version == "1.1" else _scalar_of_1_2)
    data = builder.build(node, ())
    return YamlSource(file=str(file), data=data, marks=builder.marks, folder=folder)


def format_path(path: KeyPath) -> str:
    """`("stages", 1, "epochs")` as `stages[1].epochs`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _read_bytes(file: str | Path, max_bytes: int) -> bytes:
    path = Path(file)
    try:
        if path.is_dir():
            raise SpecError(file, "must be a YAML file, but is a folder. Name a file in it.")
        return read_regular_file(path, max_bytes=max_bytes)
    except FileNotFoundError:
        raise SpecError(file, "must be a YAML file, but does not exist. Check the path.") from None
    except UnsuitableFileError as error:
        raise SpecError(file, f"must be a YAML file, but cannot be read: {error.strerror}. Check the path.") from None
    except OSError as error:
        raise SpecError(file, f"must be readable, but got: {error.strerror}. Check its permissions.") from None


def _check_encoding(file: str | Path, raw: bytes) -> None:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if b"\0" in raw:
            raise SpecError(file, "must be a YAML file, but is an image or another binary file.") from None
        line = raw[: error.start].count(b"\n") + 1
        raise SpecError(
            file, f"must be text in UTF-8, but byte {raw[error.start]:#04x} is not. Save it as UTF-8.", line=line
        ) from None


def _check_events(file: str | Path, raw: bytes, max_values: int) -> None:
    """Reject input that would overflow the stack of the composer, which is recursive."""
    depth = num_values = num_documents = 0
    for event in yaml.parse(raw, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.DocumentStartEvent):
            num_documents += 1
            if num_documents > 1:
                raise SpecError(
                    file, "must hold one YAML document, but a second one starts here. Remove the `---`.", line=line
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.NodeEvent):
            num_values += 1
            if num_values > max_values:
                raise _too_many(file, line, max_values)
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise SpecError(file, f"must hold plain values, but got the tag {tag!r}. Remove the tag.", line=line)
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise _too_deep(file, line)


class _Builder:
    """Turns composed nodes into plain data; aliases are expanded, within the limits."""

    def __init__(
        self, file: str | Path, max_values: int, read_scalar: Callable[[yaml.ScalarNode], PlainScalar]
    ) -> None:
        self.file, self.max_values, self.read_scalar = file, max_values, read_scalar
        self.marks: dict[KeyPath, Mark] = {}
        self.num_values = 0
        self.open: list[int] = []

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.num_values += 1
        if self.num_values > self.max_values:
            raise _too_many(self.file, _line(node), self.max_values)
        self.marks.setdefault(path, Mark(_line(node), node.start_mark.column + 1))
        if isinstance(node, yaml.ScalarNode):
            if "\0" in node.value:
                raise SpecError(self.file, "text must not contain a null byte. Remove it.", line=_line(node), path=path)
            return node.value if node.style else self._scalar(node, path)
        if id(node) in self.open:
            raise SpecError(
                self.file,
                "an anchor must not contain itself, but this one does. Write it out.",
                line=_line(node),
                path=path,
            )
        if len(self.open) >= MAX_DEPTH:
            raise _too_deep(self.file, _line(node))
        self.open.append(id(node))
        value = dict(self._entries(node, path)) if isinstance(node, yaml.MappingNode) else self._items(node, path)
        self.open.pop()
        return value

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> PlainScalar:
        try:
            return self.read_scalar(node)
        except ValueError as error:
            raise SpecError(self.file, str(error), line=_line(node), path=path) from None

    def _items(self, node: yaml.Node, path: KeyPath) -> list[Any]:
        return [self.build(child, (*path, index)) for index, child in enumerate(node.value)]

    def _entries(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[str, Any]]:
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or (not key_node.style and not isinstance(_plain_scalar(key), str)):
                found = "a list or mapping" if key is None else repr(_plain_scalar(key))
                raise SpecError(
                    self.file,
                    f"keys must be text, but got {found}. Put it in quotes if it is intended.",
                    line=line,
                    path=path,
                )
            if key == "<<":
                raise SpecError(
                    self.file,
                    "keys must be plain, but got a merge key (`<<`), which is not supported. Write the keys out.",
                    line=line,
                    path=path,
                )
            if key in first_lines:
                raise SpecError(
                    self.file,
                    f"a key must appear once, but {key!r} is here and in line {first_lines[key]}. Remove one.",
                    line=line,
                    path=(*path, key),
                )
            first_lines[key] = line
            self.marks[(*path, key)] = Mark(line, key_node.start_mark.column + 1)
            yield key, self.build(value_node, (*path, key))


def _scalar_of_1_2(node: yaml.ScalarNode) -> PlainScalar:
    value = _plain_scalar(node.value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"numbers must be finite, but got {node.value!r:.60}.")
    return value


def _scalar_of_1_1(node: yaml.ScalarNode) -> PlainScalar:
    if node.tag != _TEXT and len(node.value) > _LONGEST_NUMBER:  # 1:30:00 is a number, too, and slow to read if long
        raise ValueError(
            f"must be a plain value, and a number has at most {_LONGEST_NUMBER} characters, but got "
            f"{node.value!r:.60}. Put it in quotes if it is text."
        )
    try:
        value = yaml.constructor.SafeConstructor().construct_object(node)
    except yaml.constructor.ConstructorError:  # `=` and `<<` have types of their own, which are no plain values
        return str(node.value)
    except ValueError as error:  # such as a date in a month 13
        raise ValueError(f"must be a plain value, but got {node.value!r:.60} ({error}). Put it in quotes.") from None
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"must be text, a number or a truth value, but got {node.value!r:.60}. Put it in quotes.")
    return value


def _plain_scalar(text: str) -> PlainScalar:
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INTEGER.fullmatch(text):
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if _NOT_FINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _too_many(file: str | Path, line: int, max_values: int) -> SpecError:
    return SpecError(
        file,
        f"must hold at most {max_values:,} values after aliases are expanded, but there are more. Make it smaller.",
        line=line,
    )


def _too_deep(file: str | Path, line: int) -> SpecError:
    return SpecError(file, f"must nest at most {MAX_DEPTH} levels deep, but goes deeper here. Flatten it.", line=line)


def _syntax_error(file: str | Path, raw: bytes, error: yaml.YAMLError) -> SpecError:
    if isinstance(error, yaml.MarkedYAMLError):
        mark, start = error.problem_mark or error.context_mark, error.context_mark
        since = f" (it starts in line {start.line + 1})" if mark and start and start.line != mark.line else ""
        what = ", ".join(part for part in (error.context, error.problem) if part)
        return SpecError(
            file,
            f"must be YAML, but is not: {what}{since}. Check indentation, colons and quotes.",
            line=mark.line + 1 if mark else None,
        )
    if isinstance(error, yaml.reader.ReaderError):
        line = raw[: error.position].count(b"\n") + 1
        return SpecError(file, f"must be YAML, but is not: {error.reason}. Remove that character.", line=line)
    return SpecError(file, f"must be YAML, but is not: {error}.")


def absolute_path(text: str, folder: Path) -> str:
    """Resolve a user's path relative to a folder, and expand `~`."""
    return str((folder / expanded_path(text)).resolve())


def expanded_path(text: str) -> Path:
    """A path with the home folder for `~`. A `~` that names no user of this machine stays."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def yaml_text(value: Any) -> str:
    """Plain data as YAML, with keys in their order; several times as fast as `yaml.safe_dump`."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text
