"""YAML files become plain data with lines, or one clear error."""

from pathlib import Path

import pytest

from trainers.yaml_source import MAX_DEPTH, OF_STUDY_FILES, SpecError, format_path, read_yaml, yaml_text


def write(folder: Path, text: str | bytes) -> Path:
    file = folder / "study.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [[[*a{i - 1}]]]\n" for i in range(1, 30))

BAD = {
    "empty": ("", 1, "mapping"),
    "only a comment": ("# nothing\n", 1, "mapping"),
    "a list": ("- a\n", 1, "got a list"),
    "a scalar": ("\nhello\n", 2, "'hello'"),
    "bad indentation": ("a: 1\n b: 2\n", 2, "must be YAML"),
    "an unclosed bracket": ("a: 1\nb: [1, 2\nc: 3\n", 3, "starts in line 2"),
    "a tab": ("a:\n\tb: 1\n", 2, "must be YAML"),
    "a control character": ("a: 1\nb: \x07\n", 2, "must be YAML"),
    "not UTF-8": (b"a: 1\nb: \xff\n", 2, "UTF-8"),
    "two documents": ("a: 1\n---\nb: 2\n", 2, "second one"),
    "a key twice": ("a: 1\nb: 2\na: 3\n", 3, "line 1"),
    "a nested key twice": ("a:\n  b: 1\n  b: 2\n", 3, "line 2"),
    "a number as key": ("a: 1\n2: b\n", 2, "keys must be text, but got 2"),
    "null as key": ("~: 1\n", 1, "keys must be text"),
    "a list as key": ("[a, b]: 1\n", 1, "keys must be text"),
    "a merge key": ("a: &a {x: 1}\nb: {<<: *a}\n", 2, "merge key"),
    "a Python object": ("a: !!python/object/apply:os.system [echo]\n", 1, "tag"),
    "a local tag": ("a: !include other.yaml\n", 1, "tag"),
    "an unknown alias": ("a: *nowhere\n", 1, "undefined alias"),
    "an anchor in itself": ("a: &a [*a]\n", 1, "must not contain itself"),
    "a number that is not finite": ("a: 1\nb: .inf\n", 2, "finite"),
    "a number too large": ("a: 1e999\n", 1, "finite"),
    "deep nesting": ("a: " + "[" * (MAX_DEPTH + 1), 1, "deep"),
    "nesting that would overflow the stack": ("[" * 500_000, 1, "deep"),
    "block nesting": ("- " * 300_000, 1, "deep"),
    "too many values": ("a:\n" + "- x\n" * OF_STUDY_FILES.max_values, OF_STUDY_FILES.max_values - 1, "20,000"),
    "a billion laughs": (BOMB, 1, "20,000"),
    "aliases that nest deeper and deeper": (CHAIN, None, "deep"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    text, line, fragment = BAD[name]
    file = write(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        read_yaml(file)
    assert fragment in caught.value.message
    assert line is None or caught.value.line == line
    assert str(caught.value).startswith(f"{file}:{caught.value.line}: ")


def test_a_missing_file_a_folder_and_a_device_are_refused_without_a_line(tmp_path: Path) -> None:
    for file, fragment in (
        (tmp_path / "none.yaml", "does not exist"),
        (tmp_path, "is a folder"),
        (Path("/dev/zero"), "device"),
    ):
        with pytest.raises(SpecError, match=fragment) as caught:
            read_yaml(file)
        assert caught.value.line is None


def test_fifty_megabytes_are_refused_by_their_size_alone(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    with file.open("wb") as stream:
        stream.truncate(
            50 * OF_STUDY_FILES.max_bytes
        )  # a sparse file: reading it would find zero bytes, which are no YAML
    with pytest.raises(SpecError, match="at most 1,048,576 bytes, but has 52,428,800"):
        read_yaml(file)


def test_scalars_follow_yaml_1_2(tmp_path: Path) -> None:
    text = "a: [1e-3, 5e+2, 010, 2_000_000, -3, 1.5, 1:30, no, true, ~, '7', \"1e-3\", 2024-01-01, none]"
    assert read_yaml(write(tmp_path, text)).data["a"] == [
        1e-3, 500.0, 10, 2_000_000, -3, 1.5, "1:30", "no", True, None, "7", "1e-3", "2024-01-01", "none",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["=", "<<"])
def test_signs_with_a_type_of_their_own_are_text_in_yaml_1_1(tmp_path: Path, text: str) -> None:
    assert read_yaml(write(tmp_path, f"a: {text}"), version="1.1").data == {"a": text}


@pytest.mark.parametrize("text", ["1:1" + ":1" * 100 + ".5", "1" + ":1" * 100_000, "0x" + "f" * 100])
def test_numbers_without_end_are_refused_in_yaml_1_1(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match="at most 40 characters"):
        read_yaml(write(tmp_path, f"a: {text}"), version="1.1")


def test_each_value_knows_its_place(tmp_path: Path) -> None:
    source = read_yaml(write(tmp_path, "a: 1\nb:\n  - c: 2\n    d: [3,\n     4]\n"))
    assert source.data == {"a": 1, "b": [{"c": 2, "d": [3, 4]}]}
    assert source.marks["b", 0, "d", 1] == (5, 6)
    assert source.line(("b", 0, "d")) == 4
    assert source.line(("b", 0, "not there", 5)) == 3
    error = source.error(("b", 0, "d"), "must be short.")
    assert (error.line, error.path) == (4, "b[0].d")
    assert str(error) == f"{source.file}:4: b[0].d: must be short."


def test_aliases_are_filled_in(tmp_path: Path) -> None:
    source = read_yaml(write(tmp_path, "a: &a {x: 1}\nb: *a\n"))
    assert source.data == {"a": {"x": 1}, "b": {"x": 1}}
    source.data["a"]["x"] = 2
    assert source.data["b"] == {"x": 1}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, b"\xef\xbb\xbfa: 1")).data == {"a": 1}


def test_paths_read_like_code() -> None:
    assert format_path(("stages", 1, "criteria", 0, "epochs")) == "stages[1].criteria[0].epochs"
    assert format_path(()) == ""


def test_data_are_written_in_their_order_and_read_back(tmp_path: Path) -> None:
    data = {"b": 1, "a": [0.1, None, True, "10", "\u00e4: b"], "c": {"x": 1e-05}}
    text = yaml_text(data)
    assert text.startswith("b: 1\na:\n- 0.1\n")
    assert read_yaml(write(tmp_path, text)).data == data
