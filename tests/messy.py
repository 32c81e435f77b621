"""Messy CSV files whose dialects are known; `python tests/messy.py` prints what is found of them.

Each is written from the description of something that people really meet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from batchserve.inputs import detection, encodings
from batchserve.inputs.dialect import Asked, Dialect, Found


@dataclass(frozen=True)
class Messy:
    """A small file, and how it is written."""

    name: str
    text: str
    dialect: Dialect
    columns: Sequence[str]
    """What its columns are called."""
    rows: int
    raw: bytes = field(default=b"")

    @property
    def bytes_(self) -> bytes:
        """The file."""
        return self.raw or self.text.encode(self.dialect.encoding)


PEOPLE = [("Ann", "Delft", "41"), ("Bo", "Oslo", "29"), ("Chen", "Xi'an", "35"), ("Dia", "Accra", "52")]
NAMES = ("name", "city", "age")


def table(
    delimiter: str = ",", end: str = "\n", quote: str = "", names: Sequence[str] = NAMES,
    rows: Sequence[Sequence[str]] = tuple(PEOPLE),
) -> str:  # fmt: skip
    """Write rows with the same marks everywhere."""
    lines = [delimiter.join(f"{quote}{text}{quote}" for text in row) for row in ([names] if names else [])]
    lines += [delimiter.join(f"{quote}{text}{quote}" for text in row) for row in rows]
    return end.join(lines) + end


def known(name: str, text: str, *, columns: Sequence[str] = NAMES, rows: int = 4, **dialect: object) -> Messy:
    """Describe a file by what is not as in the common CSV."""
    return Messy(name, text, Dialect(**dialect), columns, rows)


MONEY = (("2024-01-31", "1.234,50", "rent"), ("2024-02-01", "12,00", "tea"), ("2024-02-03", "7,5", "bus"))
SAYS = "id,text\n" + "".join(f'{i},"He said ""no"", {i} times"\n' for i in range(4))
POEM = "id,text,n\n" + "".join(f'{i},"one line\nand, another\n\nend",{i * 7}\n' for i in range(5))
ESCAPED = "id,text\n" + "".join(f'{i},"say \\"hi\\", {i}"\n' for i in range(6))
LINES = "id,text,n\n" + "".join(f'{i},"some, \\"quoted\\" and\nline {i}",{i * 7}\n' for i in range(400))
BARE = "id,text\n" + "".join(f"{i},Ann\\, Bo and Chen\n" for i in range(6))
UNNAMED = ("column_1", "column_2", "column_3")

CORPUS = (
    known("comma", table()),
    known("comma, CRLF, all quoted", table(end="\r\n", quote='"'), line_end="CRLF"),
    known("semicolons", table(";"), delimiter=";"),
    known("semicolons, CRLF, cp1252", table(";", "\r\n").replace("Bo", "Bø"), delimiter=";", line_end="CRLF",
          encoding="cp1252"),
    known("semicolons with decimal commas", table(";", names=("date", "amount", "what"), rows=MONEY),
          delimiter=";", columns=("date", "amount", "what"), rows=3),
    known("tabs", table("\t"), delimiter="\t"),
    known("tabs, quoted, with tabs inside", table("\t", quote='"').replace("Oslo", "Os\tlo"), delimiter="\t"),
    known("tabs, commas in texts", table("\t").replace("Delft", "Delft, NL").replace("Oslo", "Oslo, NO"),
          delimiter="\t"),
    known("pipes", table("|"), delimiter="|"),
    known("pipes, CRLF", table("|", "\r\n"), delimiter="|", line_end="CRLF"),
    known("single quotes", table(",", quote="'").replace("Xi'an", "Xi, an"), quote="'"),
    known("single quotes, semicolons", table(";", quote="'").replace("Xi'an", "Xi; an"), quote="'",
          delimiter=";"),
    known("doubled quotes", SAYS, columns=("id", "text")),
    known("escaped quotes", ESCAPED, escape="\\", columns=("id", "text"), rows=6),
    known("escaped quotes over lines", LINES, escape="\\", columns=("id", "text", "n"), rows=400),
    known("escaped commas, no quotes", BARE, escape="\\", columns=("id", "text"), rows=6),
    known("paths that end in a backslash", "id,path\n" + "".join(f'{i},"C:\\dir{i}\\"\n' for i in range(5)),
          columns=("id", "path"), rows=5),
    known("quoted line ends", POEM, columns=("id", "text", "n"), rows=5),
    known("no header, numbers", "1,2.5,0\n2,3.5,1\n3,4.5,0\n", header=False, columns=UNNAMED, rows=3),
    known("no header, texts and numbers", table(names=()), header=False, columns=UNNAMED),
    known("no header, semicolons", table(";", names=()), header=False, delimiter=";", columns=UNNAMED),
    known("no header, texts that come again", "red,yes,a\nblue,yes,b\nred,no,c\nred,yes,d\n", header=False,
          columns=UNNAMED),
    known("CR", table(end="\r"), line_end="CR"),
    known("CR, quoted LF inside", table(end="\r", quote='"').replace("Oslo", "Os\nlo"), line_end="CR"),
    Messy("BOM", "", Dialect(), NAMES, 4, table().encode("utf-8-sig")),
    Messy("BOM, semicolons, CRLF", "", Dialect(delimiter=";", line_end="CRLF"), NAMES, 4,
          table(";", "\r\n").encode("utf-8-sig")),
    known("UTF-16 with a mark, tabs", table("\t", "\r\n"), delimiter="\t", line_end="CRLF",
          encoding="utf-16"),
    Messy("UTF-16-BE with a mark", "", Dialect(encoding="utf-16"), NAMES, 4,
          b"\xfe\xff" + table().encode("utf-16-be")),
    known("UTF-32 with a mark", table(), encoding="utf-32"),
    known("latin-1", table().replace("Bo", "Bjørn"), encoding="iso8859-1"),
    known("a title and a blank line before", "Staff of 2024\n\n" + table(), skip_lines=2),
    known("a title, semicolons", "Export of 3 May, 12:00\nconfidential\n" + table(";"), skip_lines=2,
          delimiter=";"),
    known("names and values before", "station: Delft\noperator: Ann\nunit: years\n\n" + table("\t"),
          skip_lines=4, delimiter="\t"),
    known("comments before", "# made by hand\n# do not edit\n" + table(), skip_lines=2),
    known("comments with commas before", "# name, city, age\n# of 2024\n" + table(), skip_lines=2),
    known("a header that is a comment", "#" + table(), columns=("#name", "city", "age")),
    known("blank lines first and between", "\n\n" + table().replace("\n", "\n\n")),
    known("excel says sep=;", "sep=;\n" + table(";"), skip_lines=1, delimiter=";"),
    known("one column", "age\n" + "\n".join(row[2] for row in PEOPLE) + "\n", columns=("age",)),
    known("one column of times", "at\n10:30\n11:45\n12:00\n13:15\n", columns=("at",)),
    known("one column of sentences", "note\nI came, I saw\nI left; at once\nfine\nno, thanks\n",
          columns=("note",)),
    known("empty fields", "name,city,age\nAnn,,41\n,Oslo,\nChen,Xi'an,35\n,,\n"),
    known("a ragged row", table() + "Eve,Rome\n" + "Fay,Nice,30\n", rows=6),
    known("numbers with thousands marks", 'item,price,n\npen,"1,234",5\ncup,"22,100",6\nhat,"3,004",7\n',
          columns=("item", "price", "n"), rows=3),
    known("times and links", "at,link\n" + "".join(
        f"2024-01-0{i} 10:0{i}:00,https://a.org/x?y={i};z=1\n" for i in range(1, 5)), columns=("at", "link")),
    known("years as names", "country,2019,2020,2021\nNL,1,2,3\nNO,4,5,6\nGH,7,8,9\n",
          columns=("country", "2019", "2020", "2021"), rows=3),
    known("numbered columns", "0,1,2\n5.1,3.5,1\n4.9,3,0\n4.7,3.2,1\n", columns=("0", "1", "2"), rows=3),
    known("a nameless first column", ",x,y\n0,1.5,2\n1,2.5,3\n2,3.5,4\n", columns=("", "x", "y"), rows=3),
    known("blanks after commas", "x, y, z\n1, 2, 3\n4, 5, 6\n7, 8, 9\n", columns=("x", " y", " z"), rows=3),
    known("lists in quotes", "id;tags;n\n" + "".join(f'{i};"a,b|c,d";{i}\n' for i in range(5)),
          delimiter=";", columns=("id", "tags", "n"), rows=5),
    known("JSON in quotes", "id,json\n" + "".join(f'{i},"{{""a"": {i}, ""b"": [1,2]}}"\n' for i in range(5)),
          columns=("id", "json"), rows=5),
    known("inches", 'size,note\n6,a 6" pipe\n7,a 7" pipe\n8,"8"" pipe, long"\n', columns=("size", "note"),
          rows=3),
)  # fmt: skip


def found(messy: Messy) -> Found:
    """Find the dialect of a file; its encoding is said unless it is UTF-8 or has a mark."""
    raw = messy.bytes_
    encoding = encodings.marked(raw) or messy.dialect.encoding
    head = raw.decode(encoding).encode() if encodings.is_streamed(encoding) else raw
    return detection.find(head, encoding, Asked())


def right(messy: Messy, seen: Found) -> bool:
    """Whether all of a dialect was found; a quote or an escape character that is not used may be any."""
    unused = {
        name: getattr(seen.dialect, name)
        for name in ("quote", "escape")
        if not any(c and c in messy.text for c in (getattr(seen.dialect, name), getattr(messy.dialect, name)))
    }
    return seen.dialect == messy.dialect.model_copy(update=unused)


def main() -> None:
    """Print the share of files that are found right."""
    seen = [(messy, found(messy)) for messy in CORPUS]
    for messy, each in seen:
        if not right(messy, each):
            print(f"{messy.name}: {each}\n    is {messy.dialect}")
    good = [right(messy, each) for messy, each in seen]
    sure = [correct for correct, (_, each) in zip(good, seen, strict=True) if each.sure]
    print(f"{sum(good)} of {len(good)} right; sure of {len(sure)}, of which {sum(sure)} right")


if __name__ == "__main__":
    main()
