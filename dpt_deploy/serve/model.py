"""The file of a model repository that Triton's Python backend loads. All of it is in the installed package."""

from dpt_deploy.serve.python_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
