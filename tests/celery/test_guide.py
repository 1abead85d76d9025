"""The Python examples of the README and of docs/celery-migration.md, run as they are."""
import re
import subprocess
import time

import pytest
from celery import group

from conftest import BUILT, ROOT, TIMEOUT

GUIDE = (ROOT / "docs" / "celery-migration.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def test_the_guide_has_examples():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_of_the_guide_runs(app, example):
    names = {"app": app, "group": group, "pytest": pytest, "time": time}
    exec(compile(example, "celery-migration.md", "exec"), names)


def test_the_worker_of_the_readme_runs_the_task_of_its_python_example(app):
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    with subprocess.Popen([BUILT / "examples" / "first_worker"], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert eval(example, {"app": app}) == "o-1 refunded, 500 cents, attempt 1"
        finally:
            worker.terminate()
            report, _ = worker.communicate(timeout=TIMEOUT)
    assert "DrainReport" in report
