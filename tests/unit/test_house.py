"""The house rules that a reader of one room would not see broken in another."""

import ast
import collections
import importlib
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest
import yaml

import accel_lib

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "accel_lib"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FLOORS = (
    (
        "_logging",
        "errors",
        "version",
        "machine",
        "progress",
        "formatting",
        "ragged",
        "scores",
    ),
    ("texts", "stats", "measurement"),
    ("models", "artifact", "atomic", "wheels"),
    ("engines", "generate"),
    ("checkup",),
    ("convert",),
    ("triton",),
    ("bench",),
    ("load",),
    ("simulation",),
    ("tuning",),
    ("service",),
    ("show",),
    ("course_models", "cli"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PUBLIC = """
AccelError Artifact check choose compare doctor ensure fit_generation_simulator fit_simulator generation_load_test
guess load_model load_test load_texts open_engine reveal serve serve_gateway simulate sliders to_onnx to_openvino
to_tensorrt to_torch train_classifier tune validate
"""
LINES = 42_750  # of accel_lib, in all
HEAVY = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "tritonclient",
    "matplotlib",
    "pandas",
    "sklearn",
    "IPython",
)


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path):
    """Yield every module name that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tracked():
    """Yield the text files that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix not in {".png", ".gz", ".onnx"}:
            yield path, path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_floor_or_lower(path):
    for name in imports(path):
        if name.startswith("accel_lib.") and name.split(".")[1] in FLOOR:
            assert FLOOR[name.split(".")[1]] <= FLOOR[room(path)], f"{path.name} imports {name}"


@pytest.mark.parametrize("package", ["bench", "load", "service", "stats"])
def test_a_notebook_imports_only_what_a_package_hands_on(package):
    public = set(importlib.import_module(f"accel_lib.{package}").__all__)
    for path, text in tracked():
        if path.suffix in {".ipynb", ".md"}:
            for module, names in re.findall(rf"from accel_lib\.{package}(\.\w+)? import ([\w, ]+)", text):
                assert not module, path.name
                assert set(names.replace(" ", "").split(",")) <= public, path.name


def test_every_room_has_a_floor():
    assert {room(path) for path in modules()} <= set(FLOOR)


def test_rooms_of_one_floor_do_not_import_each_other_in_a_circle():
    edges = {(room(path), name.split(".")[1]) for path in modules() for name in imports(path) if "accel_lib." in name}
    circles = {(a, b) for a, b in edges if a != b and (b, a) in edges}
    assert not circles


def test_the_backend_in_triton_needs_neither_a_client_nor_another_room():
    seen = {name.split(".")[1] for name in imports(PACKAGE / "triton" / "backend.py") if name.startswith("accel_lib.")}
    assert seen <= {"engines", "artifact", "errors", "machine", "ragged"}
    assert not [name for name in imports(PACKAGE / "triton" / "backend.py") if name.startswith("tritonclient")]


def test_the_public_names_are_these():
    assert accel_lib.__all__ == PUBLIC.split()  # type: ignore[attr-defined]
    assert dir(accel_lib) == PUBLIC.split()


@pytest.mark.parametrize("name", PUBLIC.split())
def test_a_public_name_is_there_and_documented(name):
    assert getattr(accel_lib, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="attribute nothing"):
        _ = accel_lib.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["", ".machine", ".checkup", ".texts", ".artifact", ".errors", ".stats", ".cli"])
def test_importing_it_imports_nothing_heavy(module):
    code = f"import sys, accel_lib{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(HEAVY)


def test_the_gateway_loads_neither_pandas_nor_the_laboratory():
    code = "import sys, accel_lib.service.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    laboratory = [f"accel_lib.{package}" for package in ("bench", "load", "simulation", "tuning", "measurement")]
    assert not [name for name in done.stdout.split() if name.startswith(("pandas", "torch", "matplotlib", *laboratory))]


def test_conda_and_make_create_what_pyproject_says():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    makefile = (ROOT / "Makefile").read_text()
    extras = re.search(r"^EXTRAS := (.*)$", makefile, re.MULTILINE)[1]
    torch = re.search(r"^TORCH_RANGE := torch(.*)$", makefile, re.MULTILINE)[1]
    project = PYPROJECT["project"]
    packages, (pip,) = environment["dependencies"][:-1], environment["dependencies"][-1]["pip"]
    assert environment["name"] == project["urls"]["Repository"].rpartition("/")[2]
    assert f"python{project['requires-python']}" in packages
    assert f"pytorch{torch}" in packages
    assert f"torch{torch}" in project["optional-dependencies"]["models"]
    assert pip == f"--editable .[{extras}]"
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


def test_the_versions_agree():
    assert accel_lib.__version__ == PYPROJECT["project"]["version"]
    assert f"\n## {accel_lib.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_an_extra_that_an_error_names_exists():
    for path in modules():
        for extra in re.findall(r"accel_lib\[([\w,]+)\]|extra=\"(\w+)\"", path.read_text(encoding="utf-8")):
            assert set("".join(extra).split(",")) <= set(PYPROJECT["project"]["optional-dependencies"]), path.name


def test_no_file_holds_a_path_of_the_machine_it_was_written_on():
    here = {str(ROOT.parent) + "/", str(Path.home()) + "/", tempfile.gettempdir() + "/", sys.prefix + "/"}
    found = [
        (str(path.relative_to(ROOT)), place)
        for path, text in tracked()
        for place in here
        if path.name != Path(__file__).name and place in text
    ]
    assert not found


def test_no_file_is_left_open():
    marks = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error", "X" * 3 + r"\b"]))
    figure = re.compile(r'"image/png": ".*"')  # letters by chance
    assert not [str(path.relative_to(ROOT)) for path, text in tracked() if marks.search(figure.sub("", text))]


def lines_by_package():
    """Lines of the library's Python by package, its own modules as one."""
    counted = collections.Counter()
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).parts
        counted[parts[0] if len(parts) > 1 else "modules of its own"] += len(
            path.read_text(encoding="utf-8").splitlines()
        )
    return counted


def test_the_library_stays_within_its_lines():
    counted = lines_by_package()
    for package, lines in counted.most_common():
        print(f"{lines:7,} {package}")
    print(f"{counted.total():7,} in all, at most {LINES:,}")
    assert counted.total() <= LINES, "delete, merge, or take a library"
