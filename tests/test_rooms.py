"""The house: which room may import which. docs/concepts/architecture.md draws it."""

import ast
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


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path, *, types_too: bool = True) -> set[str]:
    """The modules of the package that a file imports, anywhere in it. types_too: for annotations too."""
    tree = ast.parse(file.read_text())
    if not types_too:
        tree = _WithoutTypeChecking().visit(tree)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("soir_qdrant"):
            for name in node.names:
                deeper = PACKAGE.joinpath(*node.module.split(".")[1:], name.name)
                there = deeper.is_dir() or deeper.with_suffix(".py").is_file()
                found.add(f"{node.module}.{name.name}" if there else node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("soir_qdrant.")}
    return found - {"soir_qdrant"}


class _WithoutTypeChecking(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def test_every_room_has_its_floor():
    rooms = {room(file) for file in FILES} - ROOF
    assert rooms == set().union(*FLOORS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_point_down(file):
    own = room(file)
    if own in ROOF:
        return
    floor = next(i for i, rooms in enumerate(FLOORS) if own in rooms)
    below = set().union(*FLOORS[:floor])
    wrong = {name for name in imports(file, types_too=False) if name.split(".")[1] not in below | {own}}
    assert not wrong


def test_no_module_imports_itself_by_way_of_others():
    graph = {}
    for file in FILES:
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        graph[".".join(parts)] = imports(file, types_too=False)
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle in its message


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_what_benchmarks_and_examples_import_is_there(file):
    """They run in no test of their own, and would keep the names of yesterday."""
    for node in ast.walk(ast.parse(file.read_text())):
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
        for node in ast.walk(ast.parse(file.read_text())):
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
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name("Pipeline")) if room(file) != "lab":
                    makers.add(file.relative_to(PACKAGE).as_posix())
    assert makers == {"assembly.py", "serving/runtime.py"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_files_stay_small(file):
    assert len(file.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_functions_stay_small(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{node.name}: {length} lines"


def _modules(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found
