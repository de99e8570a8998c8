"""What the pages say is so: their code runs, their commands parse, their tables are the code's."""

import ast
import contextlib
import dataclasses
import doctest
import importlib
import inspect
import io
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jax
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [path for top in ("pretrain", "tasks") for path in sorted((ROOT / top).rglob("*.py"))]
NAMED = re.compile(r"# (\w+)\.(py|gin)\n")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@dataclasses.dataclass
class Block:
    """A fenced block: its language, the number of its first line, and whether the page says not to run it."""

    language: str
    line: int
    text: str
    skipped: bool


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    fences = re.finditer(r"(<!-- not run: .+ -->\n)?^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    return [
        Block(match[2], text.count("\n", 0, match.start(3)) + 1, match[3], bool(match[1])) for match in fences
    ]


@every_page
def test_page_runs(page, tmp_path, monkeypatch):
    """Top to bottom in an empty directory with a small corpus, as a reader would."""
    for name in ("train.txt", "validation.txt"):
        (tmp_path / name).write_text((ROOT / "LICENSE").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shared: dict[str, Any] = {"__name__": "page"}
    runs: dict[str, str] = {}  # the run file of each model dir
    printed = None
    for block in blocks(page):
        place = f"{page.name}, line {block.line}"
        named = NAMED.match(block.text)
        if block.language == "text" and printed is not None:
            assert trimmed(printed) == trimmed(block.text), place
        printed = None
        if block.skipped:
            continue
        if named:
            (tmp_path / f"{named[1]}.{named[2]}").write_text(block.text)
        if block.language == "bash":
            for command in commands(block.text):
                check_command(command, runs, place)
        elif block.language == "python" and named:
            run_module(named[1], monkeypatch)
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), shared)
            printed = output.getvalue()


def trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def run_module(name: str, monkeypatch) -> None:
    """Imports a page's file, and calls the tests in it."""
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, module)  # and is forgotten at the end
    for test in vars(module).copy():
        if test.startswith("test_"):
            getattr(module, test)()


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a bash block, without variables set before it."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        if words:
            yield words


def check_command(words: list[str], runs: dict[str, str], place: str) -> None:
    """A script is there; a `pretrain` command has these options, and gin these names."""
    from pretrain import config
    from pretrain.cli import options

    if words[0].startswith("./"):
        assert (ROOT / words[0]).is_file(), f"{place}: no {words[0]}"
    if words[0] != "pretrain":
        return
    try:
        given = parsed(words[1:])
        source = str(given.get("run_file") or given.get("source") or "")
        if "run_file" in given:
            runs[str(given.get("model_dir", ""))] = source
        bindings = options.bindings(given["gin_flags"])
        if source.endswith(".gin") or bindings:
            config.load(source if source.endswith(".gin") else runs[source], bindings)
    except Exception as error:
        raise AssertionError(f"{place}: {shlex.join(words)}") from error


def parsed(words: list[str]) -> dict[str, Any]:
    """The parameters that click reads out of `pretrain WORDS`."""
    from pretrain.cli.main import cli

    command: click.Command | None = cli
    while isinstance(command, click.Group):
        name, *words = words
        command = command.get_command(click.Context(command), name)
    assert command is not None, f"no command {name}"
    return command.make_context(name, words).params


def test_every_table_of_the_reliability_page_was_measured():
    """Each block holds the command of its section, and a table; no signal ever made a difference."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    found = re.findall(r"^<!-- ([\w, ]+) -->\n(.*?)^<!-- end -->$", text, re.M | re.S)
    assert [name for name, _ in found] == ["kills", "terms", "damage", "seek", "save", "ledger", "caching"]
    for name, block in found:
        assert f"python scripts/reliability {name}" in block and block.count("\n|") > 3, name
        rows = [row.split(" | ") for row in re.findall(r"^\| (.*) \|$", block, re.M)[1:]]
        if name in ("kills", "terms"):
            assert {row[-1] for row in rows} == {"0"}, name
            assert f"--number {rows[-1][3]}\n" in block, name  # as many as were asked for
        if name == "save":
            steps = {row[0]: float(row[-1]) for row in rows}
            assert steps["of that, the loop stands still"] <= 1.0


def test_wrong_commands_are_found():
    for wrong in (
        "pretrain trian runs/quickstart.gin --model-dir d",
        "pretrain train runs/quickstart.gin",
        "pretrain train runs/quickstart.gin --model-dir d --gin.STEP=1",
        "pretrain train runs/no_such.gin --model-dir d",
        "pretrain evaluate d --exmaples 3",
        "./scripts/no_such.sh",
    ):
        with pytest.raises(AssertionError):
            check_command(shlex.split(wrong), {}, "here")


@every_page
def test_links_and_run_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for name in re.findall(r"(?<![\w/])((?:runs|models)/\w+\.gin)", text):
        assert (ROOT / "gin_configs" / name).is_file(), name


def test_readme_lists_every_command_and_page():
    from pretrain.cli.main import COMMANDS

    text = (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert f"| `pretrain {name} " in text, name
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT)})" in text, page.name


def rows(table: str) -> Iterator[list[str]]:
    """The cells of each row below the header."""
    for line in table.strip().splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def tables(marker: str) -> list:
    """Every table under `<!-- marker -->`, on any page; with the marker's group, where it has one."""
    pattern = rf"<!-- {marker} -->\n\n((?:\|.*\n)+)"
    return [found for page in PAGES for found in re.findall(pattern, page.read_text())]


FIELDS = tables(r"fields: ([\w.]+)")
OWN_FIELDS = tables(r"own fields: ([\w.]+)(?:, ([\w.]+))?")


def test_run_config_has_a_table():
    assert "pretrain.run.RunConfig" in dict(FIELDS)


@pytest.mark.parametrize(("name", "table"), FIELDS, ids=[name for name, _ in FIELDS])
def test_table_has_every_field_and_its_default(name, table):
    said = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(table)}
    parameters = inspect.signature(pkgutil.resolve_name(name)).parameters
    fields = getattr(pkgutil.resolve_name(name), "__dataclass_fields__", {})
    assert said == {each: shown(found.default, fields.get(each)) for each, found in parameters.items()}


@pytest.mark.parametrize(("name", "base", "table"), OWN_FIELDS, ids=[name for name, *_ in OWN_FIELDS])
def test_table_has_every_field_that_its_base_has_not(name, base, table):
    said = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(table)}
    base = pkgutil.resolve_name(base or "pretrain.models.config.ModelConfig")
    shared = inspect.signature(base).parameters
    found = inspect.signature(pkgutil.resolve_name(name)).parameters
    own = {each for each in found if each not in shared or shared[each].default != found[each].default}
    assert said == {each: shown(found[each].default, None) for each in own}


def shown(default: Any, field: dataclasses.Field | None) -> str:
    """A default as the tables write it; a dataclass made of its own defaults is `Name()`."""
    if default is inspect.Parameter.empty:
        return ""
    if field is not None and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    made = dataclasses.is_dataclass(default) and default == type(default)()
    return f"{type(default).__name__}()" if made else repr(default)


def test_schedules_have_these_fields():
    from pretrain import optim

    text = (ROOT / "docs/configs.md").read_text()
    section = text[text.index("## Schedules") : text.index("## Mesh")]
    said = {name: set(re.findall(r"`(\w+)`", fields)) for name, fields in schedule_rows(section)}
    found = {
        name: set(inspect.signature(kind).parameters)
        for name, kind in vars(optim).items()
        if inspect.isclass(kind) and "warmup_steps" in getattr(kind, "__dataclass_fields__", ())
    }
    assert said == found


def schedule_rows(section: str) -> list[tuple[str, str]]:
    return re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", section, re.M)


def test_model_sizes_are_those_of_the_code(tmp_path):
    from pretrain import config
    from pretrain.training import state

    (table,) = tables("models")
    said = {cells[0].strip("`"): cells[1:] for cells in rows(table)}
    files = {path.stem for path in (ROOT / "gin_configs/models").glob("*.gin")}
    assert said.keys() == files
    for name, cells in said.items():
        run_file = {
            "t5": "quickstart", "decoder": "quickstart_causal_lm", "dual": "contriever_tiny",
            "two": "xlnet_tiny", "xlnet": "xlnet_tiny",
        }.get(name.partition("_")[0], "bert_tiny")  # fmt: skip
        path = tmp_path / f"{name}.gin"
        path.write_text(
            "from __gin__ import dynamic_registration\n"
            f"include 'runs/{run_file}.gin'\ninclude 'models/{name}.gin'\n"
        )
        model = config.load(path).model
        shapes = jax.eval_shape(lambda model=model: state.init_params(model, 0))
        assert cells == [*model_cells(model), f"{state.count(shapes):,}"], name


def model_cells(model) -> list[str]:
    """The cells of a model's row, but for the parameters."""
    if model.family == "encoder_decoder":
        layers = f"{model.encoder_layers} + {model.decoder_layers}"
    else:
        layers = str(model.num_layers)
    kv_heads = getattr(model, "num_kv_heads", model.num_heads)
    heads = str(model.num_heads) + (f", {kv_heads}" if kv_heads != model.num_heads else "")
    sizes = (model.vocab_size, model.embed_dim, layers, heads, model.head_dim, model.mlp_dim)
    return [*map(str, sizes), model.dtype, model.remat]


def test_contributing_draws_the_floors():
    tree = ast.parse((ROOT / "tests/test_floors.py").read_text())
    (floors,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS"
    ]
    table = re.search(r"\| floor \|.*\n(?:\|.*\n)+", (ROOT / "CONTRIBUTING.md").read_text())
    said = {
        room: int(cells[0])
        for cells in rows(table[0])
        for room in re.findall(r"`(pretrain\.[\w.]+|tasks|gin_configs)`", cells[1])
    }
    assert said == floors


@pytest.mark.parametrize(
    "path", MODULES, ids=lambda path: str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
)
def test_doctests(path):
    if ">>>" not in path.read_text():
        return
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    assert doctest.testmod(importlib.import_module(name)).failed == 0
