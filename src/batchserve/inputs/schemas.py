"""Files with other columns than the first: told all at once, or made to fit (`--schema-drift widen`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from batchserve.errors import DataError
from batchserve.inputs import Layout

_WIDEN = "--schema-drift widen fills and casts; or score files of one layout at a time"
_TOLD_APART = 20
_NAMED = 3


@dataclass(frozen=True)
class Agreed:
    """The columns of the job, and the files whose own columns are others."""

    schema: pa.Schema
    layouts: dict[str, Layout]
    drift: tuple[str, ...]
    """How files differ and what is made of it, in words."""


def agree(schemas: Mapping[str, pa.Schema], *, widen: bool) -> Agreed:
    """Compare the columns of all files with those of the first.

    Args:
        schemas: The columns of each file, by its path; the types of texts are all one.
        widen: Whether to find columns that hold the rows of all files.

    Raises:
        DataError: Files differ, and `widen` is false or no column holds the values of all.
    """
    first, expected = next(iter(schemas.items()))
    if not widen:
        differ = {path: "; ".join(_differences(expected, schema)) for path, schema in schemas.items()}
        raise_drift({path: words for path, words in differ.items() if words}, first)
        return Agreed(expected, {}, ())
    layouts = _matched(schemas)
    names = list(dict.fromkeys(name for layout in layouts.values() for _, name in layout))
    schema = _widest(schemas, layouts, names)
    odd = {path: layout for path, layout in layouts.items() if layout != _same(schema.names)}
    told = {path: "; ".join(_made_of(schemas[path], layouts[path], schema, expected)) for path in schemas}
    return Agreed(schema, odd, tuple(_grouped({path: words for path, words in told.items() if words})))


def raise_drift(differ: Mapping[str, str], first: str, hint: str = _WIDEN) -> None:
    """Raise the error that names every file of `differ` and what differs in it; if there is one.

    Raises:
        DataError: Files differ.
    """
    if not differ:
        return
    if len(differ) == 1:
        ((path, words),) = differ.items()
        raise DataError(f"{path}: {words}, unlike {first}", hint)
    lines = [f"  {line}" for line in _grouped(differ)]
    raise DataError("\n".join([f"{len(differ):,} files have other columns than {first}", *lines]), hint)


def _grouped(told: Mapping[str, str]) -> Iterator[str]:
    """Say of each file what there is to say; of many files, of those that are alike together."""
    if len(told) <= _TOLD_APART:
        yield from (f"{path}: {words}" for path, words in told.items())
        return
    alike: dict[str, list[str]] = {}
    for path, words in told.items():
        alike.setdefault(words, []).append(path)
    for words, paths in alike.items():
        more = f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else ""
        count = f"{len(paths):,} file{'s' * (len(paths) != 1)}"
        yield f"{count}: {words}: {', '.join(paths[:_NAMED])}{more}"


# -- refuse -----------------------------------------------------------------------------------


def _differences(expected: pa.Schema, schema: pa.Schema) -> Iterator[str]:
    if schema.equals(expected):
        return
    known, own_names = dict.fromkeys(expected.names), dict.fromkeys(schema.names)
    cased = _cased(own_names, known)
    taken = set(cased.values())
    missing = {name: None for name in known if name not in own_names and name not in taken}
    extra = {name: None for name in own_names if name not in known and name not in cased}
    if missing:
        yield f"no column {', '.join(missing)}"
    if extra:
        yield f"a column {', '.join(extra)} more"
    yield from (f"column {own} instead of {name}" for own, name in cased.items())
    for name in own_names:
        wanted = cased.get(name, name)
        if wanted in known and schema.field(name).type != expected.field(wanted).type:
            yield f"column {name} is {schema.field(name).type}, not {expected.field(wanted).type}"
    shared = [cased.get(name, name) for name in own_names if name not in extra]
    if shared != [name for name in known if name not in missing]:
        yield "its columns in another order"


def _cased(names: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, str]:
    """Match names that nobody has to the one known name that differs in case alone."""
    free: dict[str, list[str]] = {}
    for name in known:
        if name not in names:
            free.setdefault(name.casefold(), []).append(name)
    odd: dict[str, list[str]] = {}
    for name in names:
        if name not in known:
            odd.setdefault(name.casefold(), []).append(name)
    pairs = ((own, free.get(folded, [])) for folded, own in odd.items())
    return {own[0]: found[0] for own, found in pairs if len(own) == len(found) == 1}


# -- widen ------------------------------------------------------------------------------------


def _same(names: Sequence[str]) -> Layout:
    return tuple((name, name) for name in names)


def _matched(schemas: Mapping[str, pa.Schema]) -> dict[str, Layout]:
    """Give every column of every file its name in the job; new ones are added as they come."""
    known: dict[str, None] = {}
    layouts = {}
    for path, schema in schemas.items():
        cased = _cased(dict.fromkeys(schema.names), known)
        layouts[path] = tuple((name, cased.get(name, name)) for name in schema.names)
        known |= dict.fromkeys(name for _, name in layouts[path])
    return layouts


def _widest(
    schemas: Mapping[str, pa.Schema], layouts: Mapping[str, Layout], names: Sequence[str]
) -> pa.Schema:
    kinds: dict[str, tuple[pa.DataType, str]] = {}
    problems: dict[str, list[str]] = {}
    for path, layout in layouts.items():
        for own, name in layout:
            kind = schemas[path].field(own).type
            before, where = kinds.get(name, (kind, path))
            wider = _wider(before, kind)
            if wider is None:
                words = f"column {name} is {kind}, and no type holds that and the {before} of {where}"
                problems.setdefault(path, []).append(words)
            else:
                kinds[name] = wider, where
    differ = {path: "; ".join(words) for path, words in problems.items()}
    raise_drift(differ, next(iter(schemas)), "convert one of them")
    return pa.schema([pa.field(name, kinds[name][0]) for name in names])


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type that holds the values of both, or None.

    Example:
        >>> _wider(pa.int32(), pa.float64()), _wider(pa.int64(), pa.string())
        (DataType(double), None)
    """
    if one.equals(other):
        return one
    one, other = (each.value_type if pa.types.is_dictionary(each) else each for each in (one, other))
    try:
        schemas = [pa.schema([pa.field("", each)]) for each in (one, other)]
        found = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        for each in (one, other):
            pa.nulls(1, each).cast(found)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return None
    return found


def _made_of(schema: pa.Schema, layout: Layout, job: pa.Schema, first: pa.Schema) -> Iterator[str]:
    """Say what is made of a file whose columns are not those of the job."""
    if schema.equals(job):
        return
    names, before = dict.fromkeys(name for _, name in layout), dict.fromkeys(first.names)
    missing = [name for name in job.names if name not in names]
    extra = [name for name in names if name not in before]
    if missing:
        yield f"no column {', '.join(missing)} (null)"
    if extra:
        yield f"a column {', '.join(extra)} more (null where it is missing)"
    yield from (f"column {own} is taken for {name}" for own, name in layout if own != name)
    for own, name in layout:
        kind, wide = schema.field(own).type, job.field(name).type
        if kind != wide:
            yield f"column {name} is cast from {kind} to {wide}"
    if [name for name in job.names if name in names] != list(names):
        yield "its columns are put in order"
