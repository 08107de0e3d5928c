"""Puts the configs into wheels: in the repository they lie beside the package, once installed within it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies `configs` into the package that is built."""

    def run(self) -> None:
        """Build; an editable installation reads the repository's own."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("configs", Path(self.build_lib) / "ipvrm_lightning" / "configs", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
