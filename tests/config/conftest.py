import pytest


@pytest.fixture
def config_file(tmp_path):
    """Writes a config file with this body; returns its path."""

    def write(body):
        path = tmp_path / "configs/mine.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"from bloodjax import settings\n{body}")
        return str(path)

    return write
