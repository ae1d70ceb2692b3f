"""bloodjax: fine-tune ImageNet CNNs to classify cells under a microscope, in pure JAX."""

__version__ = "0.1.0"

__all__ = ["__version__", "create_model", "load"]


def __getattr__(name: str):
    # On demand, so that `import bloodjax` and a command's --help do not wait for JAX.
    if name == "create_model":
        from bloodjax.pretrained.load import create_model

        return create_model
    if name == "load":
        from bloodjax.evaluation.ensemble import load

        return load
    if name == "settings":  # what config files imported before it was called config
        from bloodjax import config

        return config
    raise AttributeError(f"module 'bloodjax' has no attribute {name!r}")
