"""docs/tutorial.md: its commands are ones that the command line takes, its code compiles, its words are those that are printed."""

import re
import shlex
from pathlib import Path

import pytest

from spectrim import cli
from spectrim.demo import demo_model

TEXT = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()
COMMANDS = re.findall(r"```bash\nspectrim (.*?)```", TEXT, re.S)
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_the_tutorial_has_all_its_steps():
    assert [command.split()[0] for command in COMMANDS] == ["inspect", "compress", "compress", "bench", "export"] and len(
        BLOCKS
    ) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_taken(command):
    words = shlex.split(command.replace("\\\n", " "))
    function, bound, _ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
    assert function.__name__ == words[0] and bound.arguments
    if words[0] == "compress":
        assert bound.kwargs["inputs"].calibration == "spectrim.demo:calibration_batches"


@pytest.mark.parametrize("block", BLOCKS)
def test_code_compiles_and_names_layers_that_are_there(block):
    compile(block, "tutorial", "exec")
    names = re.findall(r'\["layers"\]\["(.*?)"\]', block)
    assert all(demo_model().get_submodule(name) for name in names)
