"""Discovery: strangers hurt nobody, and a clash is an error only where it is used."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from mmx import Component, hookimpl
from mmx import registry as registry_module
from mmx.errors import InputError, PluginError
from mmx.registry import KINDS, Registry

OFFER = Component("noise_fill", "json:JSONDecoder", "noise")


def offering(*components: Component, hook: str = "register_strategies") -> SimpleNamespace:
    """Make a plugin with one hook."""
    return plugin_of(lambda: list(components), hook)


def plugin_of(function: Any, hook: str = "register_strategies") -> SimpleNamespace:
    """Make a plugin whose hook is a function."""
    return SimpleNamespace(**{hook: hookimpl(function)})


class FakePoint(EntryPoint):
    """An entry point of a distribution that is not installed."""

    def __new__(cls, *args: Any, **named: Any) -> "FakePoint":
        return object.__new__(cls)

    def __init__(self, name: str, distribution: str, plugin: Any) -> None:
        super().__init__(name, "no.such:module", "mmx")
        vars(self).update(plugin=plugin, dist=SimpleNamespace(name=distribution, version="1.2"))

    def load(self) -> Any:
        """Give the plugin, or raise what it is."""
        if isinstance(self.plugin, BaseException):
            raise self.plugin
        return self.plugin


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> list[FakePoint]:
    """Entry points that are found beside the installed ones."""
    added: list[FakePoint] = []
    found = registry_module.entry_points
    monkeypatch.setattr(registry_module, "entry_points", lambda **named: [*added, *found(**named)])
    return added


def test_built_ins_of_every_kind_are_found(registry: Registry) -> None:
    assert registry.problems == []
    assert all(registry.names(kind) for kind in KINDS)
    assert {o.distribution for o in registry.offers} == {"mmx"}


@pytest.mark.parametrize("statement", ["import mmx", "from mmx.registry import Registry; Registry.load()"])
def test_listing_what_there_is_imports_nothing_heavy(statement: str) -> None:
    code = f"{statement}; import sys; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HEAVY = ("torch", "mlflow", "peft", "optuna", "sklearn")


def test_libraries_that_bring_their_own_entry_points_change_nothing() -> None:
    code = "import importlib_metadata; from mmx.registry import Registry; print(Registry.load().problems)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_catalogue_entry_can_be_imported(registry: Registry) -> None:
    classes = [registry.load_class(o.kind, o.component.name) for o in registry.offers]
    assert all(isinstance(cls, type) for cls in classes)


@pytest.mark.parametrize("error", [ImportError("no torchfoo"), SystemExit(3), SyntaxError("bad")])
def test_plugin_that_cannot_be_imported_is_quarantined_and_others_stay(
    strangers: list[FakePoint], error: BaseException
) -> None:
    strangers += [FakePoint("bad", "mmx-bad", error), FakePoint("good", "mmx-good", offering(OFFER))]
    found = Registry.load({})
    (problem,) = found.problems
    assert (problem.distribution, problem.version, problem.state) == ("mmx-bad", "1.2", "broken")
    assert type(error).__name__ in problem.reason and str(error) in problem.reason
    assert "noise_fill" in found.names("strategy") and "zero_fill" in found.names("strategy")


@pytest.mark.parametrize(
    ("plugin", "told"),
    [
        (offering(OFFER, hook="register_strategys"), "Did you mean 'register_strategies'"),
        (SimpleNamespace(register_strategies=pluggy.HookimplMarker("mxx")(lambda: [OFFER])), "no hook"),
        (SimpleNamespace(register_strategies=lambda: [OFFER]), "no hook"),
        (plugin_of(lambda: 1 / 0), "division by zero"),
        (plugin_of(lambda: None), "NoneType"),
        (plugin_of(lambda: ["noise_fill"]), "no mmx.Component"),
        (offering(Component("two words", "a:B")), "wrong form"),
        (offering(Component("noise", "no_class")), "wrong form"),
        (SimpleNamespace(trial_ended=hookimpl(lambda verdict: None)), "verdict"),
    ],
    ids=["misspelt", "other project", "unmarked", "raises", "none", "text", "name", "path", "argument"],
)
def test_plugin_with_a_bad_hook_is_quarantined_with_its_reason(plugin: Any, told: str) -> None:
    found = Registry()
    found.add_plugin(plugin, "bad", "mmx-bad", "1.0")
    (problem,) = found.problems
    assert problem.state == "broken" and told in problem.reason
    assert found.offers == [] and found.manager.list_name_plugin() == []


def test_plugin_that_only_observes_is_known() -> None:
    found = Registry()
    found.add_plugin(
        SimpleNamespace(trial_ended=hookimpl(lambda outcome: None)), "journal", "mmx-journal", "1.0"
    )
    assert [(o.name, o.distribution, o.hooks) for o in found.observers] == [
        ("journal", "mmx-journal", ("trial_ended",))
    ]


def test_hook_that_exits_is_quarantined() -> None:
    found = Registry()
    found.add_plugin(plugin_of(lambda: sys.exit(3)), "bad", "mmx-bad", "1.0")
    assert [p.distribution for p in found.problems] == ["mmx-bad"]


def test_hook_that_yields_its_components_is_not_silently_empty() -> None:
    def generate() -> Any:
        yield OFFER

    found = Registry()
    found.add_plugin(plugin_of(generate), "good", "mmx-good", "1.0")
    assert found.names("strategy") == ["noise_fill"] or found.problems


def test_clash_is_refused_with_both_distributions_only_where_it_is_used(strangers: list[FakePoint]) -> None:
    strangers.append(FakePoint("other", "mmx-other", offering(Component("zero_fill", "json:JSONDecoder"))))
    found = Registry.load({})
    with pytest.raises(PluginError, match=r"(?s)mmx:zero_fill.*mmx-other:zero_fill"):
        found.find("strategy", "zero_fill")
    assert found.find("strategy", "skip").distribution == "mmx"
    assert found.clashes() == [("strategy", "zero_fill", ["mmx", "mmx-other"])]


@pytest.mark.parametrize("distribution", ["mmx", "mmx-other"])
def test_distribution_in_front_of_a_name_chooses(strangers: list[FakePoint], distribution: str) -> None:
    strangers.append(FakePoint("other", "mmx-other", offering(Component("zero_fill", "json:JSONDecoder"))))
    found = Registry.load({})
    assert found.find("strategy", f"{distribution}:zero_fill").distribution == distribution


def test_one_name_in_two_kinds_is_no_clash() -> None:
    found = Registry()
    found.add_plugin(offering(OFFER), "a", "mmx-a", "1")
    found.add_plugin(offering(OFFER, hook="register_fusions"), "b", "mmx-b", "1")
    assert found.clashes() == [] and found.find("fusion", "noise_fill").distribution == "mmx-b"


def test_stranger_with_the_entry_point_name_of_a_built_in_displaces_nothing(
    strangers: list[FakePoint],
) -> None:
    strangers.append(FakePoint("mmx-core", "aaa-stranger", offering(OFFER)))
    found = Registry.load({})
    assert found.problems == []
    assert found.find("fusion", "concat").distribution == "mmx"
    assert found.find("strategy", "noise_fill").distribution == "aaa-stranger"


def test_disabled_distribution_is_out_and_says_why(strangers: list[FakePoint]) -> None:
    strangers += [FakePoint("a", "mmx-a", offering(OFFER)), FakePoint("b", "mmx-b", offering())]
    found = Registry.load({"MMX_DISABLE_PLUGINS": "mmx-a, nobody"})
    assert [(p.distribution, p.state) for p in found.problems] == [("mmx-a", "disabled")]
    assert "MMX_DISABLE_PLUGINS" in found.problems[0].reason
    assert "noise_fill" not in found.names("strategy")


def test_load_list_keeps_the_built_ins_and_what_it_names(strangers: list[FakePoint]) -> None:
    strangers += [FakePoint("a", "mmx-a", offering(OFFER)), FakePoint("b", "mmx-b", offering())]
    found = Registry.load({"MMX_LOAD_PLUGINS": "mmx-a"})
    assert [p.distribution for p in found.problems] == ["mmx-b"]
    assert {o.distribution for o in found.offers} == {"mmx", "mmx-a"}


def test_disabled_plugin_is_not_even_imported(strangers: list[FakePoint]) -> None:
    strangers.append(FakePoint("a", "mmx-a", KeyboardInterrupt()))
    assert Registry.load({"MMX_DISABLE_PLUGINS": "mmx-a"}).problems[0].state == "disabled"


PLUGIN = """
from mmx import Component, hookimpl

class {cls}: ...

@hookimpl
def register_strategies():
    return [Component("mine", f"{{__name__}}:{cls}")]
"""


def write_plugin(path: Path, cls: str = "Mine") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(PLUGIN.format(cls=cls), encoding="utf-8")
    return path


def test_one_off_file_offers_its_components(tmp_path: Path) -> None:
    found = Registry.load({}, [write_plugin(tmp_path / "my_strategy.py")])
    assert found.load_class("strategy", "mine").__name__ == "Mine"
    assert found.load_class("strategy", "my_strategy.py:mine").__name__ == "Mine"


def test_edited_file_is_read_anew(tmp_path: Path) -> None:
    path = write_plugin(tmp_path / "mine.py", "First")
    assert Registry.load({}, [path]).load_class("strategy", "mine").__name__ == "First"
    write_plugin(path, "Second")
    assert Registry.load({}, [path]).load_class("strategy", "mine").__name__ == "Second"


def test_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no_such\.py"):
        Registry.load({}, [tmp_path / "no_such.py"])


def test_file_that_raises_is_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("raise RuntimeError('half written')", encoding="utf-8")
    (problem,) = Registry.load({}, [path]).problems
    assert problem.version == "file" and "half written" in problem.reason


def test_two_files_of_one_name_in_two_folders_do_not_put_each_other_out(tmp_path: Path) -> None:
    paths = [write_plugin(tmp_path / folder / "mine.py", folder.title()) for folder in ("one", "two")]
    found = Registry.load({}, paths)
    assert len(found.manager.get_plugins()) >= len(Registry.load({}, paths[:1]).manager.get_plugins())
    assert not found.problems


def test_unknown_name_gets_a_did_you_mean_and_is_the_users_mistake(registry: Registry) -> None:
    with pytest.raises(InputError, match="Did you mean 'zero_fill'") as caught:
        registry.find("strategy", "zero_fil")
    assert caught.value.exit_code == 2


def test_unknown_name_that_a_broken_plugin_may_hold_is_a_plugin_problem() -> None:
    found = Registry.load({})
    found.add_plugin(plugin_of(lambda: 1 / 0), "bad", "mmx-bad", "1.0")
    with pytest.raises(PluginError, match=r"(?s)mmx-bad.*division by zero") as caught:
        found.find("strategy", "quantum")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("variable", ["MMX_DISABLE_PLUGINS", "MMX_LOAD_PLUGINS"])
def test_name_of_a_disabled_plugin_is_a_plugin_problem_even_if_a_built_in_sounds_like_it(
    strangers: list[FakePoint], variable: str
) -> None:
    strangers.append(FakePoint("noise", "mmx-noise-fill", offering(OFFER)))
    named = "mmx-noise-fill" if variable == "MMX_DISABLE_PLUGINS" else "mmx-other"
    with pytest.raises(PluginError, match="mmx-noise-fill"):
        Registry.load({variable: named}).find("strategy", "noise_fill")


def test_misspelt_built_in_beside_a_broken_plugin_is_still_the_users_mistake() -> None:
    found = Registry.load({})
    found.add_plugin(plugin_of(lambda: 1 / 0), "bad", "mmx-bad", "1.0")
    with pytest.raises(InputError, match="Did you mean 'zero_fill'"):
        found.find("strategy", "zero_fil")


def test_name_of_a_distribution_that_does_not_offer_it_is_refused(registry: Registry) -> None:
    with pytest.raises(InputError, match="nobody:zero_fill"):
        registry.find("strategy", "nobody:zero_fill")


@pytest.mark.parametrize(
    ("component", "told"),
    [
        (Component("late", "no_such_module:Late"), "ModuleNotFoundError"),
        (Component("late", "json:NoSuchClass"), "AttributeError"),
        (Component("late", "json:JSONDecoder", requires=("no_such_extra",)), "no_such_extra"),
    ],
    ids=["module", "class", "extra"],
)
def test_component_that_cannot_be_imported_says_so_where_it_is_used(component: Component, told: str) -> None:
    found = Registry()
    found.add_plugin(offering(component), "late", "mmx-late", "1.0")
    with pytest.raises(PluginError, match=rf"(?s)mmx-late.*{told}"):
        found.load_class("strategy", "late")
