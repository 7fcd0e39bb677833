"""The tutorials' code, block by block, as a reader would run it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs").glob("tutorial-*.md"))


def test_there_are_tutorials():
    assert len(TUTORIALS) == 3


@pytest.mark.parametrize("path", [*TUTORIALS, ROOT / "README.md"], ids=lambda path: path.stem)
def test_code_runs(path, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        if any(word in block for word in ("coco", "old.jpg", "epochs=10")):
            continue  # downloads, photographs of the reader's, minutes
        exec(compile(block, f"{path.name}, block {number}", "exec"), names)
