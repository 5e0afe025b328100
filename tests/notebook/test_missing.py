"""What is not installed is named, with what to install; what does not need it works."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # each starts processes that import a lot

SHELL = """
import sys
for name in {missing!r}: sys.modules[name] = None
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config
config = Config(); config.HistoryManager.enabled = False
shell = InteractiveShell.instance(config=config)
shell.run_cell("%load_ext mcpdiag.notebook").raise_error()
from mcpdiag.embedded import COMMAND
from tests.conftest import RawClient
shell.user_ns.update(COMMAND=COMMAND, RawClient=RawClient)
shell.run_cell("%mcp_proxy demo -- {{COMMAND[0]}} {{COMMAND[1]}}").raise_error()
shell.run_cell("client = RawClient(proxy.url).initialize()").raise_error()
shell.run_cell("%%mcp_window\\nclient.call('echo', text='x')").raise_error()
window = shell.user_ns["window"]
print("HTML", window._repr_html_())
print(repr(window))
shell.user_ns["proxy"].close()
"""


def run(code: str) -> str:
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_without_ipython_the_extension_names_the_extra() -> None:
    code = "import sys; sys.modules['IPython'] = None\ntry:\n    import mcpdiag.notebook\nexcept ImportError as error:\n    print(error)"
    assert run(code).startswith("notebooks need IPython; pip install 'mcpdiag[notebook]'")


def test_importing_mcpdiag_imports_no_ipython() -> None:
    assert run("import sys, mcpdiag; print('IPython' in sys.modules)") == "False\n"


def test_without_pandas_a_window_shows_its_counts_and_says_what_is_missing() -> None:
    said = run(SHELL.format(missing=["pandas"]))
    assert "1 call in 0." in said
    assert "frames need pandas; pip install &#x27;mcpdiag[notebook]&#x27;" in said


def test_without_matplotlib_pyarrow_and_memray_the_magics_work() -> None:
    said = run(SHELL.format(missing=["matplotlib", "pyarrow", "memray", "rich.table"]))
    assert ">echo</td>" in said


@pytest.mark.parametrize(
    ("missing", "module", "says"),
    [
        ("pandas", "history", "live views need pandas; pip install 'mcpdiag[notebook]'"),
        ("matplotlib", "picture", "plots need matplotlib; pip install 'mcpdiag[notebook]'"),
    ],
)
def test_a_live_view_names_what_it_lacks(missing: str, module: str, says: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"try:\n    import mcpdiag.notebook.{module}\nexcept ImportError as error:\n    print(error)"
    )
    assert run(code).strip().startswith(says)
