"""The list of packages, which pyproject.toml cannot express: the folder train/ is installed as the package dpt_train.

A package called train in site-packages would hide people's own modules of that name.
"""

from setuptools import find_packages, setup

train = ["dpt_train", *(f"dpt_train.{name}" for name in find_packages("train"))]
setup(packages=[*find_packages(include=["dpt_deploy*"]), *train], package_dir={"dpt_train": "train"})
