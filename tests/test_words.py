"""The names in the package: none for which the field has a better word."""

import ast
import re
from pathlib import Path

import soir_qdrant

PACKAGE = Path(soir_qdrant.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
FOREIGN = {"supports_least_similarity"}  # an attribute that FiftyOne asks for

# word -> what to say instead. As a whole name, or as one of the words of a longer one.
INSTEAD = {
    **dict.fromkeys(
        ("held", "told", "found", "given", "made", "seen", "kept", "asked"),
        "what it is: settings, scores, boxes, payload, request, candidates ...",
    ),
    "most": "max_",
    "least": "min_",
    "falling": "descending",
    "rising": "ascending",
    "picture": "image",
    "pictures": "images",
    "shaken": "jittered",
    "junk": "false positives",
    "telling": "with_tokens",
    "learnt": "trained, weights, head, adapter",
    "refit": "fit, adapt",
    "bend": "adapt",
}
WHOLE = {  # only as a whole name: ground_truth and standard_deviation are the field's words
    "ground": "background",
    "deviation": "std",
    "apart": "dilation",
    "AWAY": "NEGATIVE_WEIGHT",
    "OFF_BANK": "BANK_WEIGHT",
}
MODULES = {"parts", "where", "found", "page", "fitted", "fitting"}


def defined(tree: ast.AST) -> set[str]:
    """The names that a module gives: variables, arguments, attributes, functions, classes, imports `as`."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.arg(arg=name) | ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
    return names


def instead(name: str) -> str | None:
    """What to say instead of a name; None where it is good."""
    if name.strip("_") in WHOLE:
        return WHOLE[name.strip("_")]
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")
    return next((INSTEAD[word] for word in words if word in INSTEAD), None)


def wrong(file: Path) -> set[str]:
    return {name for name in defined(ast.parse(file.read_text())) if instead(name)}


def test_names_are_the_words_of_the_field():
    assert {f"{file}: {name}": instead(name) for file in FILES for name in wrong(file) - FOREIGN} == {}


def test_modules_say_what_is_in_them():
    assert not {file.stem for file in FILES} & MODULES


def test_what_counts_as_a_name():
    tree = ast.parse(
        "import a as held\nself.found = [x for told in y]\ndef see(least_side, *, picturesque): ..."
    )
    assert {name for name in defined(tree) if instead(name)} == {"held", "found", "told", "least_side"}
    assert instead("MostSimilar") == "max_"
    assert instead("ground_truth") is None
