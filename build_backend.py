"""PEP 517 backend: builds against the installed torch and asks pip only for what is missing.

The usual ``requires = ["setuptools", "torch"]`` fails without a network and, with one, builds
against the newest torch instead of the one in use.  Here the surrounding environment is put back
on ``sys.path``; whatever it lacks is requested at the version of constraints.txt, because pip's
``-c`` does not reach build isolation.
"""

import re
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

NEEDED = {"torch": (2, 11), "setuptools": (77, 0)}  # oldest versions that can build colorseg

if sysconfig.get_path("platlib") not in sys.path:  # pip's build isolation took it away
    sys.path.append(sysconfig.get_path("platlib"))


def _pinned(name):
    text = (Path(__file__).parent / "constraints.txt").read_text()
    return re.search(rf"^{name}==\S+", text, re.MULTILINE).group()


def _missing():
    """Names from NEEDED that are absent or too old."""
    for name, oldest in NEEDED.items():
        try:
            installed = tuple(int(n) for n in re.findall(r"\d+", metadata.version(name))[:2])
        except metadata.PackageNotFoundError:
            installed = ()
        if installed < oldest:
            yield name


def _hook(name):
    def call(*args, **kwargs):
        for missing in _missing():  # only without build isolation: pip has installed it otherwise
            oldest = ".".join(map(str, NEEDED[missing]))
            sys.exit(
                f"colorseg is built with {missing}>={oldest}: pip install -U '{_pinned(missing)}'"
            )
        from setuptools import build_meta  # late: pip may have to install it first

        return getattr(build_meta, name)(*args, **kwargs)

    return call


def get_requires_for_build_wheel(config_settings=None):
    return [_pinned(name) for name in _missing()]


get_requires_for_build_sdist = get_requires_for_build_wheel
get_requires_for_build_editable = get_requires_for_build_wheel
build_wheel = _hook("build_wheel")
build_sdist = _hook("build_sdist")
build_editable = _hook("build_editable")
prepare_metadata_for_build_wheel = _hook("prepare_metadata_for_build_wheel")
prepare_metadata_for_build_editable = _hook("prepare_metadata_for_build_editable")
