"""The type hints of the native half say what is there; every public thing has a docstring; asyncio mirrors it all."""

import ast
import inspect
import os
import unittest

import payload_manager as pm
from payload_manager import _native

HINTS = os.path.join(os.path.dirname(pm.__file__), "_native.pyi")


def hinted(hints: str) -> dict[str, dict[str, list[str]]]:
    """Class -> method -> its parameters, from the stub."""
    classes = {}
    for node in ast.parse(hints).body:
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            classes[node.name] = {
                method.name: [a.arg for a in method.args.posonlyargs + method.args.args + method.args.kwonlyargs]
                for method in methods
            }
    return classes


def differences(hints: str) -> list[str]:
    """What the stub and the module do not agree on."""
    found = []
    classes = hinted(hints)
    there = {name for name in dir(_native) if inspect.isclass(getattr(_native, name))}
    found += [f"class {name}" for name in there ^ set(classes)]
    for name, methods in classes.items():
        of = getattr(_native, name)
        own = {word for word in vars(of) if not word.startswith("__")}
        found += [f"{name}.{word}" for word in own ^ {word for word in methods if not word.startswith("__")}]
        for word in own & set(methods):
            runtime = getattr(of, word)
            if callable(runtime) and list(inspect.signature(runtime).parameters) != methods[word]:
                found.append(f"{name}.{word}{inspect.signature(runtime)}: {methods[word]}")
    return found


class Hints(unittest.TestCase):
    def test_given_the_stub_when_compared_with_the_module_then_they_agree_and_an_offence_is_found(self):
        with open(HINTS) as file:
            hints = file.read()
        self.assertEqual(differences(hints), [])
        self.assertEqual(len(differences(hints.replace("def pin(", "def pinned("))), 2)
        self.assertEqual(len(differences(hints.replace("id: _Id, duration", "id: _Id, seconds"))), 1)
        self.assertTrue(os.path.exists(os.path.join(os.path.dirname(HINTS), "py.typed")))

    def test_given_public_things_when_asked_for_help_then_each_has_some(self):
        for name in pm.__all__:
            thing = getattr(pm, name)
            if name == "PayloadId":
                continue
            self.assertTrue(inspect.getdoc(thing), name)
            for word, member in vars(thing).items() if inspect.isclass(thing) else ():
                if not word.startswith("_") and (callable(member) or isinstance(member, property)):
                    self.assertTrue(inspect.getdoc(member), f"{name}.{word}")

    def test_given_the_client_when_compared_with_asyncio_then_every_method_is_mirrored(self):
        for name in ("Client", "Metadata", "Lineage", "Streams", "Subscription"):
            plain, mirrored = getattr(pm, name), getattr(pm.aio, name)
            missing = {word for word in dir(plain) if not word.startswith("_")} - set(dir(mirrored))
            self.assertEqual(missing, set(), name)


if __name__ == "__main__":
    unittest.main()
