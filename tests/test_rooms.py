"""The house: which room may import which. docs/concepts/architecture.md draws it."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import soir_qdrant
from soir_qdrant.errors import ConfigError

PACKAGE = Path(soir_qdrant.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
OUTSIDE = [
    file for folder in ("benchmarks", "examples") for file in sorted((PACKAGE.parent / folder).glob("*.py"))
]
MODULES = {
    ".".join(part.relative_to(PACKAGE.parent).with_suffix("").parts)
    for part in [*FILES, *(f.parent for f in FILES)]
}
MAX_LINES = 300
MAX_FUNCTION = 50

# Each room may import those before it, and itself. Rooms on one line do not know one another.
FLOORS = [
    {"errors"},
    {"types", "registry", "timing"},
    {"contracts"},
    {"kinds"},
    {"kind_settings", "hub"},
    {"config"},
    {"images", "geometry", "recipe"},
    {"models", "qdrant"},
    {"pooling", "mao"},
    {"components"},
    {"finder"},
    {"pipeline", "query"},
    {"rerank", "serving"},
    {"assembly"},
    {"ingest", "search"},
    {"aio", "report"},
    {"lab", "service", "scale"},
    {"integrations"},
    {"cli"},
]
ROOF = {"__init__", "__main__", "fastembed"}  # they only hand on what is below


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def nodes(file: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parsed(file)))


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Those of a module, however deep, but for what is imported for annotations alone."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not (
            isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        ):
            for block in ("body", "orelse", "finalbody", "handlers", "cases"):
                waiting += getattr(node, block, ())
            yield node


@cache
def imports(file: Path) -> set[str]:
    """The modules of the package that a file imports to run, anywhere in it."""
    found = set()
    for node in statements(parsed(file)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("soir_qdrant"):
            for name in node.names:
                deeper = f"{node.module}.{name.name}"
                found.add(deeper if deeper in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("soir_qdrant.")}
    return found - {"soir_qdrant"}


def test_every_room_has_its_floor():
    rooms = {room(file) for file in FILES} - ROOF
    assert rooms == set().union(*FLOORS)


def test_imports_point_down():
    wrong = []
    for file in FILES:
        own = room(file)
        if own not in ROOF:
            floor = next(i for i, rooms in enumerate(FLOORS) if own in rooms)
            reachable = {own}.union(*FLOORS[:floor])
            upward = {name for name in imports(file) if name.split(".")[1] not in reachable}
            wrong += [f"{file} imports {name}" for name in upward]
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    graph = {}
    for file in FILES:
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        graph[".".join(parts)] = imports(file)
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle in its message


@pytest.mark.slow  # importing what they import takes seconds
@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_what_benchmarks_and_examples_import_is_there(file):
    """They run in no test of their own, and would keep the names of yesterday."""
    for node in nodes(file):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("soir_qdrant"):
            try:
                module = import_module(node.module)
            except ConfigError as error:  # an integration whose other package is not installed
                pytest.skip(str(error))
            for name in node.names:
                assert hasattr(module, name.name) or import_module(f"{node.module}.{name.name}")


def test_the_qdrant_room_and_light_imports_know_no_torch():
    for file in FILES:
        if room(file) in {"qdrant", "types", "contracts", "errors", "config", "kinds", "images"}:
            assert "torch" not in {name.split(".")[0] for name in _modules(file)}, file


def test_what_a_part_can_do_is_in_its_contract():
    """Nobody looks behind it, but for what writes out or trains our own networks."""
    parts = {"encoder", "detector", "segmenter", "reranker", "pipeline", "scene_encoder"}
    looks = set()
    for file in FILES:
        for node in nodes(file):
            match node:
                case ast.Call(func=ast.Name("getattr" | "hasattr" | "isinstance"), args=[of, *_]):
                    match of:
                        case ast.Name(name) | ast.Attribute(_, name) if name.strip("_") in parts:
                            looks.add((file.relative_to(PACKAGE).as_posix(), ast.unparse(node)))
    looks = {(file, call) for file, call in looks if file.partition("/")[0] not in {"lab", "serving"}}
    assert looks == {
        ("cli/collection.py", "isinstance(settings.encoder, VitSettings)"),  # settings, not a part
        ("pooling/scenes/source.py", "isinstance(encoder, Encoder)"),  # a contract, not what fulfils it
    }


def test_pipelines_are_put_together_in_one_place():
    """By `assembly`, on a runtime by that; the laboratory changes settings and makes its own."""
    makers = set()
    for file in FILES:
        for node in nodes(file):
            match node:
                case ast.Call(func=ast.Name("Pipeline")) if room(file) != "lab":
                    makers.add(file.relative_to(PACKAGE).as_posix())
    assert makers == {"assembly.py", "serving/runtime.py"}


def test_files_stay_small():
    lengths = {str(file): len(file.read_text().splitlines()) for file in FILES}
    assert {file: length for file, length in lengths.items() if length > MAX_LINES} == {}


def test_functions_stay_small():
    lengths = {
        f"{file}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in FILES
        for node in nodes(file)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION} == {}


def _modules(file: Path) -> set[str]:
    found = set()
    for node in nodes(file):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found
