"""setuptools as the PEP 517 backend, with one addition: torch is asked for only if it is not installed.

pip builds in an environment of its own. A torch listed in pyproject.toml would be fetched into it on every
build, although the kernels compile against the one that is there.
"""

import sys

try:
    from setuptools.build_meta import *  # noqa: F403  the hooks that pip calls
    from setuptools.build_meta import get_requires_for_build_wheel as _requires
except ImportError:
    sys.exit("ausam_ext: the build needs setuptools: pip install setuptools ninja")

from build_tools import host


def get_requires_for_build_wheel(config_settings=None):
    torch = [] if host.lacks_compiler() or host.find_torch() else [host.TORCH]
    return [*_requires(config_settings), *torch]


get_requires_for_build_editable = get_requires_for_build_wheel
