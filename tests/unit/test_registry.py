"""The registry: names, options in brackets, and backends of other distributions."""

import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from backends import registry
from backends.contract import ANY_NUMBER, Option
from models.errors import UserError

TUNED = SimpleNamespace(
    name="tuned",
    options={
        "mode": Option("how hard to try", ("default", "max-autotune")),
        "graph": Option("capture"),
        "trials": Option("how often to try", ANY_NUMBER),
    },
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("eager", ("eager", {})),
        (" eager ", ("eager", {})),
        ("eager[graph]", ("eager", {"graph": ""})),
        ("compile[mode=max-autotune,graph]", ("compile", {"mode": "max-autotune", "graph": ""})),
    ],
)
def test_parse_splits_name_and_options(text: str, expected: tuple[str, dict[str, str]]) -> None:
    assert registry.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "[graph]", "eager[", "eager[graph", "eager[]", "eager[a]b", "eager[mode=]", "a[[x]]", "a b"]
)
def test_parse_refuses_what_it_cannot_read(text: str) -> None:
    with pytest.raises(UserError, match="cannot read"):
        registry.parse(text)


def test_parse_refuses_an_option_given_twice() -> None:
    with pytest.raises(UserError, match=r"'mode'.*twice"):
        registry.parse("compile[mode=default,mode=default]")


def test_parse_list_keeps_commas_inside_brackets() -> None:
    assert registry.parse_list("null,compile[mode=default,graph],eager") == [
        ("null", {}),
        ("compile", {"mode": "default", "graph": ""}),
        ("eager", {}),
    ]


def test_parse_list_refuses_an_empty_part() -> None:
    with pytest.raises(UserError, match="cannot read"):
        registry.parse_list("null,,eager")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mod": "default"}, "tuned has no option 'mod': did you mean 'mode'"),
        ({"zzz": ""}, "choose from mode, graph, trials"),
        ({"mode": "max-autotun"}, "did you mean 'max-autotune'"),
        ({"mode": ""}, "mode without a value"),
        ({"graph": "yes"}, "graph is a switch"),
        ({"trials": "0"}, "does not take trials=0: write trials=1, or a larger number"),
        ({"trials": "many"}, "does not take trials=many"),
        ({"trials": ""}, "does not take trials without a value"),
    ],
)
def test_check_options_names_what_to_try(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        registry.check_options(TUNED, options)


def test_check_options_accepts_what_the_backend_takes() -> None:
    registry.check_options(TUNED, {})
    registry.check_options(TUNED, {"mode": "max-autotune", "graph": "", "trials": "12"})


def test_a_backend_without_options_says_so() -> None:
    with pytest.raises(UserError, match="null has no option 'graph': it takes no options"):
        registry.check_options(registry.find("null"), {"graph": ""})


@pytest.mark.parametrize("name", list(registry.BUILTIN))
def test_a_builtin_backend_is_found_under_its_own_name(name: str) -> None:
    assert registry.find(name).name == name
    assert name in registry.names()


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown backend 'compil': did you mean 'compile'"):
        registry.find("compil")
    with pytest.raises(UserError, match="choose from null, eager, compile"):
        registry.find("xyzzy")


def test_finding_and_describing_backends_imports_no_framework() -> None:
    script = (
        "import sys; from backends import registry; before = set(sys.modules)\n"
        "assert not before & {'numpy', 'torch', 'backends.contract', 'importlib.metadata'}, before\n"
        "[registry.find(name) for name in registry.BUILTIN]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def install(folder: Path, code: str) -> None:
    """Lay out an installed distribution that registers the backend `third` from the module `third_party`."""
    (folder / "third_party.py").write_text(code)
    info = folder / "third_dist-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-dist\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[workbench.backends]\nthird = third_party:Third\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "third_party", raising=False)
    return tmp_path


def test_a_third_party_backend_is_found_through_its_entry_point(site: Path) -> None:
    install(site, "from backends.null import Null\nclass Third(Null):\n    name = 'third'\n")
    assert registry.names() == [*registry.BUILTIN, "third"]
    assert registry.find("third").name == "third"
    with pytest.raises(UserError, match="did you mean 'third'"):
        registry.find("thrid")


def test_a_third_party_backend_that_cannot_be_imported_is_named(site: Path) -> None:
    install(site, "import a_module_that_is_not_there\n")
    assert "third" in registry.names()
    with pytest.raises(UserError, match=r"'third' of third-dist.*a_module_that_is_not_there.*uninstall"):
        registry.find("third")


def test_a_third_party_class_that_is_no_backend_is_named(site: Path) -> None:
    install(site, "class Third:\n    name = 'third'\n    options = {}\n    def build(self): ...\n")
    with pytest.raises(UserError, match=r"'third' of third-dist.*lacks probe, load"):
        registry.find("third")


def test_the_core_may_import_no_backend_but_null() -> None:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    *_, contract = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    assert set(contract["forbidden_modules"]) == {f"backends.{name}" for name in registry.BUILTIN} - {
        "backends.null"
    }
