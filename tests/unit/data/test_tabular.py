"""Files are read whatever their encoding, separator and kind; what cannot be read is named with its line."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from evensong.data import tabular
from evensong.data.tabular import TextFormat
from evensong.errors import SourceError


def test_text_files_are_read_whatever_separates_them(tmp_path: Path) -> None:
    for name, text in {
        "comma.csv": "user,item\nann,tea\n",
        "semicolon.csv": "user;item\r\nann;tea\r\n",
        "quoted.csv": 'user;"item, its id"\nann;"tea, green"\n',
        "tab.tsv": "user\titem\nann\ttea\n",
        "marked.csv": "\ufeffuser,item\nann,tea\n",
    }.items():
        (tmp_path / name).write_bytes(text.encode())
        read = tabular.read_file(str(tmp_path / name), {"user_id": "user"})
        assert read.to_dicts() == [{"user_id": "ann"}], name
    (tmp_path / "small.csv.gz").write_bytes(gzip.compress(b"user,item\nann,tea\n"))
    assert tabular.read_file(str(tmp_path / "small.csv.gz"), {"i": "item"}).to_dicts() == [{"i": "tea"}]


def test_a_separator_is_for_the_files_that_have_it(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("who^what\nann^tea, green\n")
    (tmp_path / "items.csv").write_text("what,name\ntea,Tea\n")
    text = TextFormat(separator="^", other_separators=True)
    for name, wanted, row in (("events", "what", "tea, green"), ("items", "name", "Tea")):
        read = tabular.read_file(str(tmp_path / f"{name}.csv"), {"found": wanted}, text)
        assert read["found"].to_list() == [row]
    with pytest.raises(SourceError, match=r"expected columns between '\^'.*'what,name'; there ',' seems to be one"):
        tabular.columns(str(tmp_path / "items.csv"), TextFormat(separator="^"))


def test_numbers_in_text_keep_their_zeros(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user\n00123\n")
    assert tabular.read_file(str(tmp_path / "a.csv"), {"user_id": "user"})["user_id"].to_list() == ["00123"]


def test_a_wrong_column_name_shows_the_right_ones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,movie_id,stamp\n1,2,3\n")
    with pytest.raises(
        SourceError,
        match=r"no column 'user' for user_id; it has 'user_id', 'movie_id', 'stamp'; did you mean 'user_id'",
    ):
        tabular.read_file(str(tmp_path / "a.csv"), {"user_id": "user"})


def test_a_missing_file_an_empty_folder_and_a_file_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="found nothing"):
        tabular.files(str(tmp_path / "absent.csv"))
    (tmp_path / "notes.doc").write_text("no data")
    with pytest.raises(SourceError, match=r"expected a file ending in \.parquet.*notes\.doc"):
        tabular.files(str(tmp_path))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(SourceError, match="found an empty file"):
        tabular.read_file(str(tmp_path / "empty.csv"), {"a": "a"})
    (tmp_path / "not.parquet").write_text("user,item\n")
    with pytest.raises(SourceError, match="cannot be read"):
        tabular.read_file(str(tmp_path / "not.parquet"), {"a": "a"})


def test_where_a_file_lies_is_no_reason_to_leave_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, here = tmp_path / ".cache" / "_parts", tmp_path / "here"
    hidden.mkdir(parents=True)
    here.mkdir()
    (hidden / "_events.csv").write_text("a\n1\n")
    assert tabular.files(str(hidden / "_events.csv")) == [str(hidden / "_events.csv")]
    (hidden / "events.csv").write_text("a\n1\n")
    assert [Path(uri).name for uri in tabular.files(str(hidden))] == ["events.csv"]
    monkeypatch.chdir(here)
    assert [Path(uri).name for uri in tabular.files("../.cache/_parts")] == ["events.csv"]
    assert tabular.files("../.cache/_parts/events.csv") == ["../.cache/_parts/events.csv"]


def test_what_a_folder_hides_is_no_data(tmp_path: Path) -> None:
    for name in ("_SUCCESS.csv", ".part.csv", "_delta_log/x.csv", "day=1/part.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a\n1\n")
    assert [Path(uri).name for uri in tabular.files(str(tmp_path))] == ["part.csv"]


MUGS = "who,what\nzoë,müsli\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1"])
def test_a_text_file_is_read_in_its_own_encoding(tmp_path: Path, encoding: str) -> None:
    mark = b"\xff\xfe" if encoding == "utf-16-le" else b""
    (tmp_path / "a.csv").write_bytes(mark + MUGS.encode(encoding))
    assert tabular.read_file(str(tmp_path / "a.csv"), {"u": "who", "i": "what"}).rows() == [("zoë", "müsli")]


def test_lines_of_several_encodings_keep_their_letters(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"who\n" + "zoë\n".encode() + "zoë €\n".encode("cp1252") + "яна\n".encode())
    assert tabular.read_file(str(tmp_path / "a.csv"), {"u": "who"})["u"].to_list() == ["zoë", "zoë €", "яна"]


def test_an_encoding_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("who\nяна\n".encode("cp1251"))
    read = tabular.read_file(str(tmp_path / "a.csv"), {"u": "who"}, TextFormat(encoding="cp1251"))
    assert read["u"].to_list() == ["яна"]
    for wrong, said in (("ascii", "cannot be decoded as ascii"), ("cp99", "unknown encoding: cp99")):
        with pytest.raises(SourceError, match=said):
            tabular.read_file(str(tmp_path / "a.csv"), {"u": "who"}, TextFormat(encoding=wrong))


def test_a_nul_byte_is_shown_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"who\nann\nb\0b\n")
    with pytest.raises(SourceError, match=r"a\.csv: line 3: expected text, found a NUL byte"):
        tabular.read_file(str(tmp_path / "a.csv"), {"u": "who"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.csv.gz", b"\x1f\x8bnot gzip"),
        ("cut.csv.gz", gzip.compress(MUGS.encode() * 1000, mtime=0)[:-20]),
        ("spoiled.csv.gz", gzip.compress(MUGS.encode() * 1000, mtime=0)[:40] + b"\0" * 60),
        ("empty.parquet", b""),
    ],
)
def test_a_file_that_is_broken_or_not_whole_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=rf"{name}: cannot be read: .*and whole"):
        tabular.read_file(str(tmp_path / name), {"u": "who"})


def test_a_parquet_file_that_was_cut_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.parquet"
    pl.DataFrame({"who": range(5000)}).write_parquet(path)
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - 5, 8):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError, match=r"cut\.parquet: cannot be read"):
            tabular.read_file(str(path), {"u": "who"})


def test_a_line_with_too_many_fields_is_shown_and_one_with_too_few_has_nulls(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('who,what\nann,"tea, green"\nbob\n')
    assert tabular.read_file(str(path), {"u": "who", "i": "what"}).rows() == [("ann", "tea, green"), ("bob", None)]
    path.write_text("who,what\nann,tea\nbob,tea, green\n")
    with pytest.raises(
        SourceError, match=r"a\.csv: line 3: expected 2 fields between ',', found 3: 'bob', 'tea', ' gr"
    ):
        tabular.read_file(str(path), {"u": "who"})


def test_a_column_that_stands_twice_is_refused_only_when_it_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who,what,who\nann,tea,bob\n")
    assert tabular.read_file(str(tmp_path / "a.csv"), {"i": "what"})["i"].to_list() == ["tea"]
    with pytest.raises(SourceError, match="'who' stands there more than once"):
        tabular.read_file(str(tmp_path / "a.csv"), {"u": "who"})


def test_a_file_without_names_has_numbered_columns(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("7::tea::5\n8::mug::4\n")
    text = TextFormat(separator="::", header=False)
    assert tabular.read_file(str(tmp_path / "ratings.dat"), {"u": "1", "v": "3"}, text).rows() == [
        ("7", "5"),
        ("8", "4"),
    ]
    with pytest.raises(SourceError, match="no column 'user' for u; it has '1', '2', '3'"):
        tabular.read_file(str(tmp_path / "ratings.dat"), {"u": "user"}, text)


def test_nested_fields_and_folders_are_columns_too(tmp_path: Path) -> None:
    part = tmp_path / "date=2026-01-10" / "shop=caf%C3%A9"
    part.mkdir(parents=True)
    rows = [{"who": "ann", "product": {"id": 7, "in": {"shelf": "tea"}}, "shop": "own"}]
    pl.DataFrame(rows).write_parquet(part / "0.parquet")
    wanted = {"i": "product.id", "s": "product.in.shelf", "d": "date", "o": "shop"}
    assert tabular.read_file(str(part / "0.parquet"), wanted).rows() == [(7, "tea", "2026-01-10", "own")]
    with pytest.raises(SourceError, match=r"did you mean 'product\.id'"):
        tabular.read_file(str(part / "0.parquet"), {"i": "product.idd"})


def test_a_workbook_is_answered_with_how_to_save_it(tmp_path: Path) -> None:
    (tmp_path / "retail.xlsx").write_bytes(b"PK")
    for place in (tmp_path, tmp_path / "retail.xlsx"):
        with pytest.raises(SourceError, match=r"retail\.xlsx; save each sheet of a workbook as CSV"):
            tabular.files(str(place))


def test_data_that_is_passed_over_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.csv", "b.xlsx", "README.md"):
        (tmp_path / name).write_text("who\nann\n")
    assert tabular.files(str(tmp_path)) == [str(tmp_path / "a.csv")]
    assert "b.xlsx" in caplog.text
    assert "README" not in caplog.text


def test_a_place_that_cannot_even_be_looked_at_is_an_error_of_the_source() -> None:
    with pytest.raises(SourceError, match="cannot be used: File name too long"):
        tabular.files("/tmp/" + "x" * 300 + ".csv")


def test_thousands_of_files_are_one_source(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number:04d}.csv").write_text(f"who\nu{number}\n")
    assert len(tabular.fingerprints(str(tmp_path))) == 2000


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('ann,7" vinyl\nbob,"tea"\n', [("ann", '7" vinyl'), ("bob", "tea")]),
        ('ann,"tea\nbob,mug\ncid,jam"\n', [("ann", '"tea'), ("bob", "mug"), ("cid", 'jam"')]),
        ('ann,"tea\ngreen"\nbob,"a ""b"", c"\n', [("ann", "tea\ngreen"), ("bob", 'a "b", c')]),
        ('ann,"say ""tea"\nbob,5"\n', [("ann", 'say "tea'), ("bob", '5"')]),
        ("\nann,tea\n\n,\nbob,mug\n\n", [("ann", "tea"), ("bob", "mug")]),
    ],
)
def test_no_row_is_lost_to_quotes_that_do_not_pair_or_to_empty_lines(
    tmp_path: Path, text: str, rows: list[tuple[str, str]]
) -> None:
    for name, ends in (("a.csv", "\n"), ("b.csv", "\r\n")):
        (tmp_path / name).write_bytes(f" who , what\n{text}".replace("\n", ends).encode())
        read = tabular.read_file(str(tmp_path / name), {"u": "who", "i": "what"}).rows()
        assert [(u, i.replace("\r\n", "\n")) for u, i in read] == rows


def test_lines_may_end_as_on_an_old_mac(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"who,what\rann,tea\rbob,mug\r")
    assert tabular.read_file(str(tmp_path / "a.csv"), {"u": "who"})["u"].to_list() == ["ann", "bob"]


def test_a_file_of_another_kind_than_its_ending_says_is_told(tmp_path: Path) -> None:
    pl.DataFrame({"who": ["ann"]}).write_parquet(tmp_path / "a.csv")
    with pytest.raises(SourceError, match=r"a\.csv: expected text, found a Parquet file"):
        tabular.read_file(str(tmp_path / "a.csv"), {"u": "who"})
